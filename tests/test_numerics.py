# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Precision, gradients, determinism and integers."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader

from helpers.geotiffs import write
from helpers.oracles import saliency_oracle
from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae.datasets import RasterScene, SceneChips
from torchgeo_sigmae.models import MaskedAutoencoder, masked_mse, normalize_patches
from torchgeo_sigmae.models.encoder import SIGMAEViT
from torchgeo_sigmae.models.spectral import S2MAEViT, SatMAEViT
from torchgeo_sigmae.patches import valid_values
from torchgeo_sigmae.tasks.statistics import BatchStatistics
from torchgeo_sigmae.transforms import (
    INDICES,
    AppendSpectralIndices,
    PatchSaliency,
    patch_saliency,
    spectral_indices,
)

#: All bands that the indices take, by their common names.
BANDS = {
    'blue': 'B02',
    'green': 'B03',
    'red': 'B04',
    'rededge1': 'B05',
    'nir': 'B08',
    'swir1': 'B11',
    'swir2': 'B12',
}
NAMES = tuple(BANDS.values())
#: Those of the oracle of saliency.
GUIDING = [NAMES.index(band) for band in ('B03', 'B04', 'B08', 'B11')]

FAMILIES: dict[str, dict[str, Any]] = {
    'sigmae': {},
    'sigmae, decoder self': {'decoder': 'self', 'norm_pix_loss': True},
    's2mae': {'masking': 'spatial'},
    'satmae': {'masking': 'saliency_spatial', 'spectral_weight': 0.1},
    'satmae, vanilla': {'masking': 'group', 'positions': 'vanilla'},
}

EXTREMES = {
    'int16': [-32768, -32767, -1, 0, 1, 32766, 32767],
    'uint16': [0, 1, 32767, 32768, 65534, 65535, 40000],
}


def indices_in_double(image: Tensor) -> Tensor:
    """All indices of ``(7, H, W)``."""
    bands = dict(zip(BANDS, image.double(), strict=True))
    return torch.stack([index(bands) for index in INDICES.values()])


def reflectance(dtype: torch.dtype, side: int = 48) -> Tensor:
    """``(7, side, side)`` of dark and bright, smooth and rough patches."""
    level = torch.rand(7, side // 8, side // 8) * 0.8 + 0.01
    level = level.repeat_interleave(8, -1).repeat_interleave(8, -2)
    image = (level * (1 + 0.1 * torch.randn(7, side, side))).clamp(0.001, 1.2)
    # EVI says nothing where its denominator is next to nothing.
    blue, red, nir = image[0], image[2], image[4]
    image[0] = torch.where((nir + 6 * red - 7.5 * blue + 1).abs() < 0.2, 0.01, blue)
    return image.to(dtype)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_all_precisions_agree_with_double(dtype: torch.dtype, autocast: bool) -> None:
    """Everything is computed in float32, whatever precision the values have."""
    image = reflectance(dtype)
    valid = torch.rand(image.shape[1:]) > 0.2
    valid[:8, :8] = False
    shape = (2, 9, 4 * 64)
    prediction, target = ((torch.randn(shape) * 3).to(dtype) for _ in range(2))
    counts = torch.rand(shape) > 0.3
    counts[0, 0] = False
    some = counts.any(dim=-1)
    # Half precision does not hold the squares of raw values.
    raw = (torch.rand(shape) * 10_000).to(dtype)
    with torch.autocast('cpu', torch.bfloat16) if autocast else nullcontext():
        indices = spectral_indices(image, NAMES, list(INDICES))
        saliency = patch_saliency(image, NAMES, 8, valid=valid)
        loss = masked_mse(prediction, target, counts)
        normal = normalize_patches(raw, counts)[0]
    expected = saliency_oracle(image[GUIDING].double().numpy(), valid.numpy(), 8)
    np.testing.assert_allclose(saliency.numpy(), expected, rtol=0, atol=1e-4)
    for actual, double, atol in (
        (indices, indices_in_double(image), 1e-5),
        (loss, masked_mse(prediction.double(), target.double(), counts), 1e-5),
        (normal[some], normalize_patches(raw.double(), counts)[0][some], 1e-4),
    ):
        torch.testing.assert_close(actual.double(), double, rtol=0, atol=atol)


def test_gradients_of_losses_agree_with_finite_differences() -> None:
    prediction, target = (torch.rand(2, 3, 8).double() for _ in range(2))
    valid = torch.rand(2, 3, 8) > 0.4
    prediction.requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda x: masked_mse(x, target, valid), prediction)
    assert check(lambda x: normalize_patches(x, valid), prediction)


@pytest.mark.parametrize('decoder', ['cross', 'self'])
@pytest.mark.parametrize(
    ('kind', 'arguments'),
    [
        (SIGMAEViT, {}),
        (S2MAEViT, {'cube_bands': 2}),
        (SatMAEViT, {'groups': ((0, 1, 2), (3,))}),
    ],
)
def test_gradients_of_models_agree_with_finite_differences(
    kind: Callable[..., SIGMAEViT], arguments: dict[str, Any], decoder: str
) -> None:
    encoder = kind(
        img_size=8, patch_size=4, in_chans=4, num_classes=0, embed_dim=16, depth=2,
        num_heads=2, global_pool='avg', fc_norm=False, dynamic_img_size=True,
        **arguments,
    )  # fmt: skip
    model = MaskedAutoencoder(encoder, decoder, 8, 2, 2).double()
    image = (torch.rand(2, 4, 8, 8).double() * 0.8 + 0.1).requires_grad_()
    order = torch.rand(2, 4 * model.layout.num_groups).argsort(dim=1)
    keep, predicted = order.chunk(2, dim=1)
    state = dict(model.named_parameters())

    def predict(image: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(state, weights, strict=True))
        return functional_call(model, named, (image, keep, predicted))

    inputs = (image, *state.values())
    assert torch.autograd.gradcheck(predict, inputs, fast_mode=True)


@pytest.mark.usefixtures('narrow_models')
@pytest.mark.parametrize('family', FAMILIES)
def test_deterministic_training_is_bit_equal(family: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 10, 32, 32, generator=generator) * 9000 + 1
    images[0, :, :9] = 0
    loader = DataLoader([{'image': image} for image in images], 4)

    def train() -> dict[str, Tensor]:
        torch.manual_seed(0)
        task = small_task(family.partition(',')[0], **FAMILIES[family])
        trainer = quiet_trainer(tmp_path, max_steps=2, deterministic=True)
        trainer.fit(task, loader, loader)
        return task.state_dict()

    before = torch.are_deterministic_algorithms_enabled()
    try:
        first, second = train(), train()
    finally:
        torch.use_deterministic_algorithms(before)
    for name, value in first.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, second[name]), name


def extremes(dtype: str) -> np.ndarray:
    """Every pair of extremes in two bands, and them again in five others."""
    values = np.array(EXTREMES[dtype], dtype)
    first, second = np.meshgrid(values, values)
    bands = [first, second, second[::-1], first, second, first[:, ::-1], second]
    return np.stack([np.pad(band, ((0, 1), (0, 1)), 'edge') for band in bands])


@pytest.mark.parametrize('dtype', EXTREMES)
def test_extremes_of_integers_do_not_wrap(dtype: str, tmp_path: Path) -> None:
    array = extremes(dtype)
    path = write(tmp_path / 'x.tif', array, NAMES)
    chips = SceneChips([RasterScene.open(str(path), NAMES)], NAMES, 8, random=False)
    image: Tensor = chips[0]['image']
    assert np.array_equal(image.double().numpy(), array.astype(float))
    # Raw values as they are, which the commonest mistake would be, and reflectance.
    for scale in (1.0, 1e-4):
        values = image * scale
        indices = spectral_indices(values, NAMES, list(INDICES))
        torch.testing.assert_close(
            indices.double(), indices_in_double(values), rtol=0, atol=1e-5
        )
    valid = (array != 0).any(axis=0)
    saliency = patch_saliency(image, NAMES, 2, valid=torch.from_numpy(valid))
    wanted = saliency_oracle(array[GUIDING], valid, 2)
    np.testing.assert_allclose(saliency.numpy(), wanted, rtol=0, atol=1e-5)
    # Missing at the lowest, and at the highest value.
    for nodata in (array.min(), array.max()):
        data = valid_values(image, float(nodata)).numpy()
        assert (data == (array != nodata).any(axis=0)).all()
    bands = len(NAMES)
    statistics = BatchStatistics(
        NAMES, tuple(range(bands)), (1000.5,) * bands, (3.0,) * bands, 1.0, 0.0
    )
    normal = statistics.normalize(image)
    wanted = (array.astype(float) - 1000.5) / 3
    np.testing.assert_allclose(normal.numpy(), wanted, rtol=1e-6)
    again = statistics.reflectance(normal, dim=0).numpy()
    np.testing.assert_allclose(again, array.astype(float), rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize('dtype', [torch.int16, torch.uint16, torch.int32, torch.uint8])
def test_tensors_of_integers_are_refused_where_they_would_wrap(
    dtype: torch.dtype,
) -> None:
    names = ('B03', 'B04', 'B08', 'B11')
    image = torch.full((1, 4, 8, 8), 200, dtype=torch.int64).to(dtype)
    calls: list[Callable[[], object]] = [
        partial(spectral_indices, image, names),
        partial(patch_saliency, image, names, 8),
        partial(PatchSaliency(names), {'image': image}),
    ]
    for call in calls:
        with pytest.raises(TypeError, match='image: expected a floating-point tensor'):
            call()
    with pytest.raises(TypeError):
        AppendSpectralIndices(('NDVI',), names)(image)
