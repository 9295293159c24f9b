# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

from typing import Any

import kornia.augmentation as K
import pytest
import torch
from torch import nn

from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.tasks.augmentation import augment, default_transform
from torchgeo_sigmae.tasks.batch import VALID_KEY, mark_missing, refuse_empty
from torchgeo_sigmae.tasks.settings import BatchSpec
from torchgeo_sigmae.tasks.statistics import resolve_statistics

STATISTICS = resolve_statistics(
    BatchSpec(mean=list(range(10)), std=2.0), BandSet(SENTINEL2_TEN_BANDS)
)


def damaged() -> torch.Tensor:
    image = torch.rand(2, 10, 8, 8) + 5
    image[0, :, 0] = 0
    image[1, 3, 1, 1] = torch.nan
    image[1, 4, 2, 2] = -torch.inf
    image[1, 5, 3, 3] = 0  # one dark band is no gap
    return image


def test_missing_pixels_are_marked() -> None:
    image = damaged()
    batch = mark_missing({'image': image, 'label': 1}, STATISTICS, 0.0)
    assert batch['label'] == 1
    valid = batch[VALID_KEY]
    assert valid.shape == (2, 1, 8, 8)
    # Row 0 of the first image is a gap; single values of the second are not.
    assert (valid[0, 0].sum(), valid[1].sum()) == (56, 64)
    kept = torch.ones_like(image, dtype=torch.bool)
    kept[0, :, 0] = False
    kept[1, 3, 1, 1] = kept[1, 4, 2, 2] = False
    assert torch.equal(batch['image'][kept], image[kept])
    assert batch['image'][~kept].isnan().all()


def test_channels_that_the_model_does_not_see_are_never_looked_at() -> None:
    statistics = resolve_statistics(
        BatchSpec(bands=['B02', 'VV', 'B03', 'DEM'], mean=[1, 2, 3, 4], std=2.0),
        BandSet(['B03', 'B02']),
    )
    image = torch.rand(2, 4, 8, 8) + 1
    clean = mark_missing({'image': image}, statistics, 0.0)
    image = image.clone()
    image[:, 1] = torch.nan
    image[1, 3, 2] = torch.inf
    batch = mark_missing({'image': image}, statistics, 0.0)
    assert torch.equal(batch[VALID_KEY], clean[VALID_KEY])
    assert batch[VALID_KEY].all()
    assert torch.equal(batch['image'][:, [2, 0]], image[:, [2, 0]])
    # Augmentations see all channels, so nothing is left that could spread.
    assert batch['image'].isfinite().all()
    # A gap is where the bands of the model are 0, whatever radar says.
    image[0, [0, 2], 0] = 0
    assert (mark_missing({'image': image}, statistics, 0.0)[VALID_KEY] == 0).sum() == 8


def test_a_batch_without_any_value_names_its_files() -> None:
    image = torch.zeros(2, 10, 8, 8)
    batch = {'image': image, 'path': ['a.tif', 'b.tif']}
    with pytest.raises(ValueError, match=r'no valid value .*Its files: a.tif, b.tif'):
        refuse_empty(mark_missing(batch, STATISTICS, 0.0), 0.0)
    refuse_empty(mark_missing(batch, STATISTICS, None), None)
    image[1, 3, 2, 2] = 1
    refuse_empty(mark_missing(batch, STATISTICS, 0.0), 0.0)
    series = torch.full((1, 2, 10, 8, 8), torch.nan)
    with pytest.raises(ValueError, match='no valid value'):
        refuse_empty(mark_missing({'image': series}, STATISTICS, None), None)


def test_missing_pixels_of_normalized_batches_are_found() -> None:
    raw = damaged()
    batch = {'image': STATISTICS.normalize(raw)}
    actual = mark_missing(batch, STATISTICS, 0.0, normalized=True)[VALID_KEY]
    expected = mark_missing({'image': raw}, STATISTICS, 0.0)[VALID_KEY]
    assert torch.equal(actual, expected)
    kept = mark_missing(batch, STATISTICS, None, normalized=True)[VALID_KEY]
    assert kept[0].all()


def test_missing_pixels_of_time_series() -> None:
    image = damaged().unsqueeze(1).repeat(1, 3, 1, 1, 1)
    batch = mark_missing({'image': image}, STATISTICS, 0.0)
    assert VALID_KEY not in batch, 'kornia would mistake it for a mask per sample'
    assert batch['image'][0, :, :, 0].isnan().all()
    assert batch['image'].isnan().sum() == 3 * (8 * 10 + 2)


@pytest.mark.parametrize(
    'transform',
    [
        default_transform(48),
        default_transform(16),
        K.AugmentationSequential(K.RandomRotation(45.0, p=1.0), data_keys=['input']),
        K.AugmentationSequential(
            K.RandomResizedCrop((64, 64), scale=(0.2, 0.3), resample='bicubic'),
            data_keys=['input'],
        ),
    ],
)
def test_what_stays_valid_is_not_contaminated(transform) -> None:
    image = torch.full((8, 10, 32, 32), 5.0)
    image[:, :, :, 10:13] = 0
    image[:, :, 20:22] = 0
    batch = mark_missing({'image': image}, STATISTICS, 0.0)
    out, moved = augment(transform, batch['image'], batch[VALID_KEY], seed=1)
    valid = (moved[:, 0] > 0.5) & out.isfinite().all(dim=1)
    assert 0.2 < valid.float().mean() < 0.95
    survivors = out.permute(1, 0, 2, 3)[:, valid]
    torch.testing.assert_close(survivors, torch.full_like(survivors, 5.0))


class Blend(K.IntensityAugmentationBase2D):
    """Blend every image with its own mean, as an adjustment of contrast does."""

    def apply_transform(
        self, input: torch.Tensor, params: Any, flags: Any, transform: Any = None
    ) -> torch.Tensor:
        return (input + input.mean(dim=(1, 2, 3), keepdim=True)) / 2


@pytest.mark.parametrize('size', [16, 48])
def test_contrast_does_not_spread_a_missing_value(size: int) -> None:
    image = torch.rand(4, 10, 32, 32)
    image[1, 3, 10:13, 10:13] = torch.nan
    transform = K.AugmentationSequential(
        Blend(p=1.0),
        K.RandomResizedCrop((size, size), scale=(0.9, 1.0), p=1.0),
        data_keys=['input'],
    )
    out, moved = augment(transform, image, torch.ones(4, 1, 32, 32), seed=0)
    assert (moved == 1).all()
    missing = ~out.isfinite()
    # The frame of a band with gaps counts as missing, see padding.
    assert 0 < missing[1, 3, 1:-1, 1:-1].float().mean() < 0.08
    missing[1, 3] = False
    assert not missing.any()


def test_integers_and_other_layouts_are_refused() -> None:
    integers = torch.ones(1, 10, 8, 8, dtype=torch.int16)
    with pytest.raises(TypeError, match=r'image: .*int16. Pass image.float\(\)'):
        mark_missing({'image': integers}, STATISTICS, 0.0)
    with pytest.raises(ValueError, match=r'batch\.bands: the batch has 3 channels'):
        mark_missing({'image': torch.ones(1, 3, 8, 8)}, STATISTICS, 0.0)


@pytest.mark.parametrize(
    'transform',
    [
        default_transform(16),
        K.AugmentationSequential(
            K.RandomRotation(45.0, p=1.0), K.RandomCrop((16, 16)), data_keys=None
        ),
        K.AugmentationSequential(
            K.PadTo((40, 40)), K.RandomHorizontalFlip(), data_keys=['input']
        ),
    ],
)
def test_the_mask_moves_with_the_image_and_padding_is_invalid(transform) -> None:
    valid = (torch.rand(4, 1, 4, 4) > 0.2).float()
    valid = valid.repeat_interleave(8, 2).repeat_interleave(8, 3)
    image = torch.where(valid > 0, 7.0, torch.nan).expand(-1, 10, -1, -1)
    out, moved = augment(transform, image, valid, seed=3)
    assert moved.shape == (4, 1, *out.shape[-2:])
    assert set(moved.unique().tolist()) <= {0.0, 1.0}
    # What is valid shows the image's own value: neither gap nor padding.
    shown = out[:, :1][(moved > 0.5) & out[:, :1].isfinite()]
    torch.testing.assert_close(shown, torch.full_like(shown, 7.0))
    assert (moved > 0.5).float().mean() > 0.1


def test_full_masks_stay_full() -> None:
    image, valid = torch.rand(2, 10, 32, 32), torch.ones(2, 1, 32, 32)
    _, moved = augment(default_transform(48), image, valid, seed=0)
    assert (moved == 1).all()


def test_augmentation_depends_on_the_seed_alone() -> None:
    image, valid = torch.rand(3, 10, 32, 32), torch.ones(3, 1, 32, 32)
    transform = default_transform(16)
    torch.manual_seed(1)
    a, _ = augment(transform, image, valid, 5)
    after = torch.rand(3)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(2)
    b, _ = augment(transform, image, valid, 5)
    c, _ = augment(transform, image, valid, 6)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(after, expected), 'the global generator was disturbed'


def test_identity_leaves_everything() -> None:
    image, valid = torch.rand(1, 10, 8, 8), torch.ones(1, 1, 8, 8)
    out, moved = augment(nn.Identity(), image, valid, 0)
    assert out is image
    assert moved is valid


def test_no_overshoot_into_negative_reflectance() -> None:
    image = torch.zeros(8, 10, 32, 32)
    image[..., 16:] = 1
    out, _ = augment(default_transform(64), image, torch.ones(8, 1, 32, 32), 0)
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6


@pytest.mark.parametrize(('side', 'size'), [(64, 64), (32, 96), (120, 48)])
def test_batched_crops_are_those_of_kornia(side: int, size: int) -> None:
    """All samples at once, and the same crops as one after the other."""
    image, valid = torch.rand(8, 10, side, side), torch.ones(8, 1, side, side)
    valid[:, :, side // 4 : side // 2, : side // 3] = 0
    image = torch.where(valid > 0, image, torch.nan)
    slow = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0), resample='bilinear'),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        data_keys=['input'],
    )
    actual, found_valid = augment(default_transform(size), image, valid, 5)
    expected, expected_valid = augment(slow, image, valid, 5)
    # Where the edge of a gap falls on the edge of a pixel, rounding decides.
    same = actual.isnan() == expected.isnan()
    assert same.double().mean() > 0.995
    assert (found_valid == expected_valid).double().mean() > 0.99
    torch.testing.assert_close(
        actual.nan_to_num()[same], expected.nan_to_num()[same], rtol=0, atol=2e-4
    )
