# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import kornia
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia import augmentation as K
from torch.utils.data import Subset
from torchgeo.datamodules import (
    EuroSATDataModule,
    LEVIRCDDataModule,
    OSCDDataModule,
)
from torchgeo.datasets import OSCD

from torchgeo_sigmae import BitemporalAugmentation, bitemporal
from torchgeo_sigmae.datamodules.inspect import datamodule_normalization, normalizes

OLD_KORNIA = kornia.__version__ < '0.9'


def pair(*batch: int, size: int = 24, dates: int = 2) -> dict[str, Any]:
    """The mask shows where a pixel comes from; date t is the mask plus 10000 t."""
    place = torch.arange(size * size).view(size, size)
    mask = place.expand(*batch, 1, size, size).clone()
    shift = 10000.0 * torch.arange(dates).view(-1, 1, 1, 1)
    return {'image': (mask.unsqueeze(-4) + shift).repeat(*[1] * len(batch), 1, 3, 1, 1)}


def with_mask(*batch: int, **kwargs: int) -> dict[str, Any]:
    sample = pair(*batch, **kwargs)
    sample['mask'] = sample['image'].select(-4, 0)[..., :1, :, :].long()
    return sample


def aligned(sample: dict[str, Any], dates: int = 2) -> bool:
    mask = sample['mask'].unsqueeze(-4)
    shift = 10000.0 * torch.arange(dates).view(-1, 1, 1, 1)
    return torch.equal(sample['image'], (mask + shift).expand_as(sample['image']))


MOVES = [
    lambda: K.RandomHorizontalFlip(),
    lambda: K.RandomVerticalFlip(),
    lambda: K.RandomCrop((16, 12)),
]


@settings(deadline=None, max_examples=30)
@given(
    moves=st.lists(st.sampled_from(MOVES), max_size=3, unique=True),
    batch=st.sampled_from([(), (1,), (3,)]),
    dates=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_dates_and_masks_move_together(moves, batch, dates, seed) -> None:
    sample = with_mask(*batch, dates=dates)
    torch.manual_seed(seed)
    out = BitemporalAugmentation(*(move() for move in moves))(sample)
    assert aligned(out, dates)
    assert out['mask'].dtype == torch.int64
    assert out['mask'].ndim == sample['mask'].ndim
    assert out['image'].shape[:-2] == sample['image'].shape[:-2]
    if MOVES[2] in moves:
        assert out['image'].shape[-2:] == (16, 12)
    assert sample['image'].shape[-2:] == (24, 24), 'the sample itself was changed'


def test_every_sample_of_a_batch_is_cropped_elsewhere() -> None:
    out = BitemporalAugmentation(K.RandomCrop((8, 8)))(with_mask(8))
    assert aligned(out)
    assert len(set(out['mask'][:, 0, 0, 0].tolist())) > 4


def test_layouts_and_types_of_masks_and_other_keys_are_kept() -> None:
    sample = pair(2)
    place = sample['image'][:, 0, 0]
    extra = {
        'mask': place.to(torch.uint8),
        'mask_valid': sample['image'][:, :, :1] > 300,
        'masks': place.double().unsqueeze(1),
        'mask_name': 'x',
        'label': torch.tensor([1, 2]),
        'saliency': torch.rand(2, 3, 3),
    }
    out = BitemporalAugmentation(K.RandomCrop((8, 8)))({**sample, **extra})
    assert list(out) == ['image', *extra]
    moved = out['image'][:, 0, 0]
    assert torch.equal(out['mask'], moved.to(torch.uint8))
    assert torch.equal(out['mask_valid'], out['image'][:, :, :1] > 300)
    assert torch.equal(out['masks'], moved.double().unsqueeze(1))
    assert out['mask_name'] == 'x'
    assert out['label'] is extra['label']
    assert out['saliency'] is extra['saliency']
    single = BitemporalAugmentation(K.RandomCrop((8, 8)))(
        {'image': sample['image'][0], 'mask': place[0].long()}
    )
    assert torch.equal(single['mask'], single['image'][0, 0].long())


def test_normalize_acts_on_each_date_and_leaves_gaps() -> None:
    image = torch.rand(2, 2, 3, 20, 20)
    image[0, 1, :, 4:9, 10] = torch.nan
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    module = BitemporalAugmentation(K.Normalize(mean, std), K.RandomCrop((18, 18)))
    out = module({'image': image})['image']
    assert out[0, 1].isnan().any(0).sum() == 5
    assert out.isnan().sum() == 15
    torch.manual_seed(3)
    crop = BitemporalAugmentation(K.RandomCrop((18, 18)))({'image': image})['image']
    torch.manual_seed(3)
    out = module({'image': image})['image']
    expected = (crop - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(out, expected, equal_nan=True)


def test_random_intensities_are_those_of_the_first_date() -> None:
    image = torch.rand(4, 1, 3, 8, 8).repeat(1, 3, 1, 1, 1) / 3
    module = BitemporalAugmentation(K.RandomBrightness((0.5, 1.5), p=0.8))
    out = module({'image': image})['image']
    assert not torch.equal(out, image)
    torch.testing.assert_close(out[:, 1:], out[:, :1].expand_as(out[:, 1:]))


@pytest.mark.parametrize(
    ('sample', 'message'),
    [
        ({'image': torch.rand(3, 8, 8)}, r'image: \(3, 8, 8\) has no time axis. Pass'),
        (
            {'image': torch.rand(2, 2, 3, 8, 8), 'mask': torch.ones(1, 8, 8)},
            r'mask: \(1, 8, 8\) does not belong to a batch of 2 images. Pass \(2, ',
        ),
    ],
)
def test_other_layouts_are_refused(sample, message) -> None:
    with pytest.raises(ValueError, match=message):
        BitemporalAugmentation(K.RandomCrop((4, 4)))(sample)


@pytest.mark.skipif(not OLD_KORNIA, reason="kornia 0.9 refuses TorchGeo's own")
@pytest.mark.parametrize(
    'operations',
    [
        [K.RandomCrop((16, 16))],
        [K.RandomCrop((32, 30), pad_if_needed=True)],
        [K.CenterCrop((16, 16))],
        [K.Normalize(torch.arange(3.0), torch.arange(3.0) + 1)],
        [K.Normalize(torch.ones(3), torch.ones(3)), K.RandomCrop((16, 16))],
        [K.RandomResizedCrop((12, 12), resample='bilinear')],
    ],
)
def test_the_values_are_those_of_torchgeo_with_old_kornia(operations) -> None:
    theirs = K.AugmentationSequential(
        K.VideoSequential(*operations), data_keys=None, keepdim=True
    )
    # One pair, as TorchGeo's dataset passes it. In a batch of several, kornia 0.8 crops
    # the masks of a VideoSequential at other places than the images.
    for batch, keys in ((1, {'image', 'mask'}), (4, {'image'})):
        sample = {k: v for k, v in with_mask(batch).items() if k in keys}
        torch.manual_seed(5)
        expected = theirs(sample)
        torch.manual_seed(5)
        actual = BitemporalAugmentation(*operations)(sample)
        for key in keys:
            torch.testing.assert_close(actual[key], expected[key])
            assert actual[key].dtype == expected[key].dtype


def oscd(root: Path, **kwargs: Any) -> OSCDDataModule:
    return OSCDDataModule(root=root, batch_size=2, **kwargs)


def videos(module: object) -> bool:
    return any(isinstance(m, K.VideoSequential) for m in module.modules())


@pytest.mark.parametrize('first', ['bitemporal', 'setup'])
def test_torchgeos_datamodule_is_repaired(oscd_root: Path, first: str) -> None:
    datamodule = oscd(oscd_root)
    if first == 'bitemporal':
        assert bitemporal(datamodule) is datamodule
    datamodule.setup('fit')
    if first == 'setup':
        assert bitemporal(datamodule) is datamodule
    assert type(datamodule) is OSCDDataModule
    assert isinstance(datamodule.train_dataset, Subset)
    assert isinstance(datamodule.dataset.transforms, BitemporalAugmentation)
    datamodule.setup('test')
    assert isinstance(datamodule.test_dataset.transforms, BitemporalAugmentation)
    for loader in (datamodule.train_dataloader(), datamodule.test_dataloader()):
        batch = next(iter(loader))
        assert batch['image'].shape == (2, 2, 13, 64, 64)
        assert batch['mask'].shape == (2, 1, 64, 64)
        assert batch['mask'].dtype == torch.int64
        before, after = batch['image'].unbind(1)
        seen = (before > 0).all(dim=1)
        gain = (after - before)[:, 3][seen]
        assert torch.equal(gain, 20.0 + 500 * batch['mask'][:, 0][seen])
        assert 0 < batch['mask'].float().mean() < 0.5
        normalized = datamodule.aug(batch)['image']
        mean, std = datamodule.mean.view(-1, 1, 1), datamodule.std.view(-1, 1, 1)
        torch.testing.assert_close(normalized, (batch['image'] - mean) / std)


def test_the_normalization_is_still_found() -> None:
    datamodule = bitemporal(OSCDDataModule())
    assert normalizes(datamodule)
    mean, std = datamodule_normalization(datamodule)
    assert torch.equal(mean, OSCDDataModule().mean)
    assert torch.equal(std, OSCDDataModule().std)


def test_a_second_call_changes_nothing(oscd_root: Path) -> None:
    datamodule = bitemporal(oscd(oscd_root))
    datamodule.setup('fit')
    before = dict(vars(datamodule)), datamodule.dataset.transforms
    assert bitemporal(bitemporal(datamodule)) is datamodule
    assert (dict(vars(datamodule)), datamodule.dataset.transforms) == before
    # Something new is repaired all the same.
    datamodule.val_aug = OSCDDataModule().aug
    assert isinstance(bitemporal(datamodule).val_aug, BitemporalAugmentation)


def test_all_augmentations_are_repaired() -> None:
    datamodule = bitemporal(LEVIRCDDataModule(patch_size=16))
    for split in ('train', 'val', 'test'):
        augmentation = getattr(datamodule, f'{split}_aug')
        assert isinstance(augmentation, BitemporalAugmentation)
        batch = {'image': torch.rand(3, 2, 3, 20, 20), 'mask': torch.ones(3, 1, 20, 20)}
        assert augmentation(batch)['image'].shape == (3, 2, 3, 16, 16)


def test_others_are_left_alone() -> None:
    datamodule = EuroSATDataModule()
    before = dict(vars(datamodule))
    assert bitemporal(datamodule) is datamodule
    assert vars(datamodule) == before
    for setting in ({'data_format': 'BCTHW'}, {'random_apply': 1}):
        other = K.AugmentationSequential(
            K.VideoSequential(K.CenterCrop(8), **setting), data_keys=None
        )
        datamodule.aug = other
        assert bitemporal(datamodule).aug is other
        assert vars(datamodule).keys() == before.keys()


@pytest.mark.parametrize(
    'duplicate', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_and_pickles_are_repaired(oscd_root: Path, duplicate) -> None:
    original = bitemporal(oscd(oscd_root))
    twin = duplicate(original)
    twin.setup('fit')
    assert original.dataset is None
    assert isinstance(twin.dataset.transforms, BitemporalAugmentation)
    assert not videos(twin.aug)


def test_a_dataset_takes_it_as_transforms(oscd_root: Path) -> None:
    """TorchGeo adds a batch axis before it calls the transforms of an image pair."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        sample = OSCD(
            oscd_root, transforms=BitemporalAugmentation(K.RandomCrop((32, 32)))
        )[1]
    assert sample['image'].shape == (2, 13, 32, 32)
    assert sample['mask'].shape == (1, 32, 32)
