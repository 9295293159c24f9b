# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo's own tasks on an encoder that our task pretrained and exported."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import SyntheticSentinel2
from torchgeo_sigmae._compat import (
    BaseTask,
    ChangeDetection,
    Classification,
    PixelwiseRegression,
    Regression,
    SemanticSegmentation,
)
from torchgeo_sigmae.weights import read_weights

pytestmark = pytest.mark.usefixtures('narrow_models')

NAME = 'sigmae_vit_tiny_patch8'
CHANNELS = 10

SEGMENTATION = {'backbone': NAME, 'num_classes': 2}
CHANGE = {'backbone': NAME, 'task': 'binary', 'loss': 'bce'}
#: Every trainer with every model it can take, and its arguments.
PAIRS: list[tuple[type[BaseTask], str, dict[str, Any]]] = [
    (Classification, NAME, {'num_classes': 2}),
    (Regression, NAME, {}),
    *(
        (task, model, arguments)
        for task, arguments in (
            (SemanticSegmentation, SEGMENTATION),
            (PixelwiseRegression, {'backbone': NAME}),
        )
        for model in ('unet', 'upernet', 'deeplabv3+', 'segformer')
    ),
    *((ChangeDetection, m, CHANGE) for m in ('fcsiamdiff', 'fcsiamconc')),
    (ChangeDetection, 'changevit', CHANGE),
]


def run(
    task: LightningModule, loader: DataLoader[Any], path: Path, **kwargs: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        quiet_trainer(path, **kwargs).fit(task, loader, loader)


@pytest.fixture(scope='module')
def chips(synthetic_root: Path) -> Tensor:
    """Sixteen synthetic chips ``(16, 10, 64, 64)``, in reflectance."""
    dataset = SyntheticSentinel2(synthetic_root, 'val')
    images = torch.stack([dataset[i]['image'] for i in range(16)])
    return torch.nn.functional.interpolate(images, (64, 64), mode='bilinear') / 10000


@pytest.fixture(scope='module')
def pretrained(
    narrow_models: None, chips: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An encoder pretrained for a few steps and exported."""
    path = tmp_path_factory.mktemp('pretrained')
    torch.manual_seed(0)
    task = small_task(size=64)
    samples = [{'image': chip * 10000} for chip in chips]
    run(task, DataLoader(samples, batch_size=4), path, max_steps=4)
    task.export(path / 'encoder.pth')
    return path / 'encoder.pth'


def loader(task: BaseTask, chips: Tensor) -> DataLoader[Any]:
    """Samples of the task: what is bright in the near infrared is of interest."""
    samples = []
    for chip, other in zip(chips, chips.roll(1, 0), strict=True):
        bright = chip[6] > chip[6].median()
        sample: dict[str, Tensor] = {'image': chip, 'mask': bright.long()}
        match task:
            case ChangeDetection():
                sample['image'] = torch.stack([chip, other])
                sample['mask'] = (bright ^ (other[6] > chip[6].median())).long()[None]
            case PixelwiseRegression():
                sample['mask'] = chip[6]
            case Classification():
                sample = {'image': chip, 'label': bright[:32].float().mean().round()}
                sample['label'] = sample['label'].long()
            case Regression():
                sample = {'image': chip, 'label': chip[6].mean()}
        samples.append(sample)
    return DataLoader(samples, batch_size=4)


def encoder_of(task: BaseTask) -> torch.nn.Module:
    encoder: torch.nn.Module = getattr(task.model, 'encoder', task.model)
    return encoder


@pytest.mark.parametrize(
    ('trainer', 'model', 'arguments', 'freeze'),
    [
        *((*pair, False) for pair in PAIRS),
        # Each of these tasks freezes in its own way.
        *((*pair, True) for pair in PAIRS if pair[1] in {NAME, 'unet', 'fcsiamdiff'}),
    ],
)
def test_every_pair_trains_on_the_pretrained_encoder(
    pretrained: Path,
    chips: Tensor,
    tmp_path: Path,
    trainer: type[BaseTask],
    model: str,
    arguments: dict[str, Any],
    freeze: bool,
) -> None:
    task = trainer(
        model=model,
        weights=str(pretrained),
        in_channels=CHANNELS,
        freeze_backbone=freeze,
        **arguments,
    )
    saved = read_weights(pretrained).encoder
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    initial = {
        key: value.clone() for key, value in encoder_of(task).state_dict().items()
    }
    assert set(initial) - set(saved) <= {'head.weight', 'head.bias'}
    for key, value in saved.items():
        assert torch.equal(initial[key], value), key

    run(task, loader(task, chips), tmp_path, max_steps=2, limit_val_batches=1)
    after = encoder_of(task).state_dict()
    moved = {key for key in saved if not torch.equal(initial[key], after[key])}
    if freeze:
        assert not moved
    else:
        assert len(moved) > 0.9 * len(saved)
        assert 'patch_embed.proj.weight' in moved
    others = [
        key
        for key, value in task.model.state_dict().items()
        if key.removeprefix('encoder.') not in saved
        and not torch.equal(value, before[key])
    ]
    assert others, 'neither decoder nor head has moved'
    assert all(value.isfinite().all() for value in task.model.state_dict().values())


def test_dpt_takes_our_name_without_weights(chips: Tensor, tmp_path: Path) -> None:
    task = SemanticSegmentation(
        model='dpt', backbone=f'tu-{NAME}', in_channels=CHANNELS, num_classes=2
    )
    run(task, loader(task, chips), tmp_path, max_steps=1, limit_val_batches=1)
    assert task(chips[:1]).shape == (1, 2, 64, 64)


def test_dpt_refuses_weights(pretrained: Path) -> None:
    with pytest.raises(ValueError, match=r"'dpt' takes no weights.*'upernet'"):
        SemanticSegmentation(
            model='dpt',
            backbone=f'tu-{NAME}',
            weights=str(pretrained),
            in_channels=CHANNELS,
            num_classes=2,
        )


@pytest.mark.parametrize(
    ('trainer', 'change', 'message'),
    [
        (SemanticSegmentation, {'backbone': 'sigmae_vit_small_patch8'}, 'width 32'),
        (SemanticSegmentation, {'backbone': 'sigmae_vit_tiny_patch16'}, 'patch size 8'),
        (SemanticSegmentation, {'in_channels': 13}, r'in_channels=10 .*adapt_bands'),
        (Classification, {'model': 'sigmae_vit_small_patch8'}, 'Use the model name'),
        (Classification, {'model': 'sigmae_vit_tiny_patch16'}, 'patch size 8'),
        # Two dates in one image.
        (ChangeDetection, {'num_classes': None}, r'Only .fcsiamdiff., .*dates=2'),
    ],
)
def test_wrong_pairings_say_what_to_change(
    pretrained: Path, trainer: type[BaseTask], change: dict[str, Any], message: str
) -> None:
    arguments = {'model': 'unet', 'in_channels': CHANNELS, **SEGMENTATION, **change}
    if trainer is Classification:
        del arguments['backbone']
    with pytest.raises(ValueError, match=rf'weights: .*{message}'):
        trainer(weights=str(pretrained), **arguments)


def test_a_plain_vit_in_a_unet_is_refused() -> None:
    # By smp itself: its list of names holds ours.
    with pytest.raises(KeyError, match=f'Wrong encoder name .*{NAME}'):
        SemanticSegmentation(backbone='vit_tiny_patch16_224', num_classes=2)
    # Its only hint for a name of timm's; our documentation says more.
    with pytest.raises(ValueError, match='Unsupported model downsampling pattern'):
        SemanticSegmentation(backbone='tu-vit_tiny_patch16_224', num_classes=2)


@pytest.mark.parametrize(
    ('trainer', 'model', 'size'),
    [
        (SemanticSegmentation, 'unet', (96, 32)),
        (SemanticSegmentation, 'upernet', (32, 160)),
        (SemanticSegmentation, 'segformer', (64, 96)),
        (SemanticSegmentation, 'deeplabv3+', (48, 80)),
        (ChangeDetection, 'fcsiamdiff', (50, 37)),
        (ChangeDetection, 'fcsiamconc', (72, 41)),
        (ChangeDetection, 'changevit', (48, 72)),
    ],
)
@torch.no_grad()
def test_other_sizes(
    trainer: type[BaseTask], model: str, size: tuple[int, int]
) -> None:
    arguments = CHANGE if trainer is ChangeDetection else SEGMENTATION
    task = trainer(model=model, in_channels=CHANNELS, **arguments).eval()
    shape = (1, 2, CHANNELS, *size) if trainer is ChangeDetection else (1, 10, *size)
    assert task(torch.randn(shape)).shape[-2:] == size
