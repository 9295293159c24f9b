# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The fast part of ``soak.numerics``, and the extremes of integers."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from geotiffs import write
from torch import Tensor

from soak import numerics
from torchgeo_sigmae.datasets import Scene, SceneChips
from torchgeo_sigmae.tasks.statistics import BatchStatistics
from torchgeo_sigmae.transforms import (
    INDICES,
    AppendSpectralIndices,
    PatchSaliency,
    patch_saliency,
    spectral_indices,
    valid_pixels,
)

EXTREMES = {
    'int16': [-32768, -32767, -1, 0, 1, 32766, 32767],
    'uint16': [0, 1, 32767, 32768, 65534, 65535, 40000],
}


@pytest.mark.parametrize('cast', [False, True])
@pytest.mark.parametrize('dtype', numerics.DTYPES)
def test_all_precisions_against_loops(dtype: torch.dtype, cast: bool) -> None:
    with torch.autocast('cpu', torch.bfloat16) if cast else nullcontext():
        found = numerics.errors(3, dtype, 24)
    assert found.keys() == numerics.BOUNDS.keys()
    for name, bound in numerics.BOUNDS.items():
        assert found[name] < bound, name


def test_every_index_has_an_oracle() -> None:
    assert numerics.ORACLES.keys() == INDICES.keys()


def test_gradients_against_finite_differences() -> None:
    agree = dict(numerics.gradients(0, parameters=False))
    assert len(agree) == len(INDICES) + 2 + 6
    assert all(agree.values()), agree


@pytest.mark.parametrize('family', numerics.FAMILIES)
def test_deterministic_training_is_bit_equal(family: str) -> None:
    first, second = (numerics.train(family, 2) for _ in range(2))
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
    names = ('B02', 'B03', 'B04', 'B05', 'B08', 'B11', 'B12')
    path = write(tmp_path / 'x.tif', array, names)
    chips = SceneChips([Scene.open(str(path), names)], names, 8, random=False)
    image: Tensor = chips[0]['image']
    assert np.array_equal(image.double().numpy(), array.astype(float))
    # Raw values as they are, which the commonest mistake would be, and reflectance.
    for scale in (1.0, 1e-4):
        values = image * scale
        found = spectral_indices(values, names, list(INDICES)).double().numpy()
        for layer, name in zip(found, INDICES, strict=True):
            wanted = numerics.index_oracle(name, values.double().numpy())
            np.testing.assert_allclose(layer, wanted, rtol=0, atol=1e-5, err_msg=name)
    valid = (array != 0).any(axis=0)
    saliency = patch_saliency(image, names, 2, valid=torch.from_numpy(valid))
    wanted = numerics.saliency_oracle(array.astype(float), valid, 2)
    np.testing.assert_allclose(saliency.numpy(), wanted, rtol=0, atol=1e-5)
    # Missing at the lowest, and at the highest value.
    for nodata in (array.min(), array.max()):
        known = valid_pixels(image, float(nodata)).numpy()
        assert np.array_equal(known, (array != nodata).any(axis=0))
    bands = len(names)
    known = BatchStatistics(
        names, tuple(range(bands)), (1000.5,) * bands, (3.0,) * bands, 1.0, 0.0
    )
    normal = known.normalize(image)
    wanted = (array.astype(float) - 1000.5) / 3
    np.testing.assert_allclose(normal.numpy(), wanted, rtol=1e-6)
    again = known.reflectance(normal, dim=0).numpy()
    np.testing.assert_allclose(again, array.astype(float), rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize('dtype', [torch.int16, torch.uint16, torch.int32, torch.uint8])
def test_tensors_of_integers_are_refused_where_they_would_wrap(
    dtype: torch.dtype,
) -> None:
    names = ('B03', 'B04', 'B08', 'B11')
    image = torch.full((1, 4, 8, 8), 200, dtype=torch.int64).to(dtype)
    with pytest.raises(TypeError, match=r'image: expected a floating-point tensor'):
        spectral_indices(image, names)
    with pytest.raises(TypeError, match=r'image: expected a floating-point tensor'):
        patch_saliency(image, names, 8)
    with pytest.raises(TypeError, match=r'image: expected a floating-point tensor'):
        PatchSaliency(names)({'image': image})
    with pytest.raises(TypeError):
        AppendSpectralIndices(('NDVI',), names)(image)
