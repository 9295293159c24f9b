# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Features and labels of patches, against loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.patch_features import extract_patches, grouped_folds, patch_labels
from torchgeo_sigmae.evaluation import (
    BandStatistics,
    FrozenEncoder,
    probe_scores,
)

BANDS = ('B02', 'B03', 'B04', 'B08')


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    size=st.integers(1, 5),
    purity=st.floats(0.05, 1),
    seed=st.integers(0, 2**31),
)
def test_labels_against_a_loop(
    rows: int, columns: int, size: int, purity: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows * size, columns * size)
    mask = torch.randint(0, 3, shape, generator=generator)
    label, usable = patch_labels(mask, size, ignore=2, purity=purity)
    for row in range(rows):
        for column in range(columns):
            pixels = mask[row * size :, column * size :][:size, :size].flatten()
            counts = np.bincount(pixels, minlength=3)
            assert counts[label[row, column]] == counts.max()
            clear = counts.max() / size**2 >= np.float32(purity)
            assert usable[row, column] == (clear and counts[2] == 0)


def sample(height: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """Water is dark, in the upper half."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(height, width, dtype=torch.long)
    mask[: height // 2] = 0
    image = 300 + 2000 * mask + 100 * torch.rand(4, height, width, generator=generator)
    return {'image': image, 'mask': mask}


def test_patches_of_images_of_many_sizes() -> None:
    samples = [sample(32, 48), sample(35, 19, 1), sample(64, 64, 2)]
    samples[0]['image'][:, 0, 0] = torch.nan
    samples[2]['mask'][-1, -1] = 255
    found = extract_patches(BandStatistics(BANDS), samples, ignore=255, block=4)
    # 4 x 6 without one, 4 x 2 (35 and 19 are cut), 8 x 8 without one.
    assert found.values.shape == (23 + 8 + 63, 8)
    assert found.values.dtype == np.float32
    assert np.isfinite(found.values).all()
    # 1 x 2 blocks, 1, and 2 x 2.
    assert list(np.bincount(found.groups)) == [15, 8, 8, 16, 16, 16, 15]
    # The first patch in use is the second one.
    patch = samples[0]['image'][:, :8, 8:16].double().numpy()
    np.testing.assert_allclose(found.values[0, :4], patch.mean((1, 2)), rtol=1e-5)
    # An image to itself where nothing else is asked.
    whole = extract_patches(BandStatistics(BANDS), samples, ignore=255)
    assert list(np.bincount(whole.groups)) == [23, 8, 63]
    splits = grouped_folds(found.labels, found.groups, folds=3, repeats=2)
    assert len(splits) == 6
    for train, test in splits:
        assert not set(found.groups[train]) & set(found.groups[test])
    for probe in ('knn', 'linear', 'ridge'):
        assert probe_scores(found.values, found.labels, splits, probe).mean() > 0.95
    metric = 'average_precision'
    ranked = probe_scores(found.values, found.labels, splits, 'ridge', metric)
    assert ranked.mean() > 0.95


@pytest.mark.parametrize('model', ['sigmae_vit_tiny_patch8', 's2mae_vit_tiny_patch16'])
def test_patches_of_an_encoder(model: str) -> None:
    torch.manual_seed(0)
    encoder = FrozenEncoder.load(model, BANDS)
    image = sample(48, 64)
    found = extract_patches(encoder, [image])
    assert found.values.shape == (48, 192)
    maps = encoder.patch_features(image['image'][None])
    if model.endswith('8'):
        np.testing.assert_allclose(found.values[9], maps[0, :, 1, 1], rtol=1e-4)
    else:
        assert maps.shape[-2:] == (3, 4)  # and resampled to 6 x 8


def test_patches_come_from_all_positions_of_chips() -> None:
    torch.manual_seed(0)
    encoder = FrozenEncoder.load('sigmae_vit_tiny_patch8', BANDS)
    image = sample(40, 24)
    found = extract_patches(encoder, [image], purity=0.01, chip=16).values
    found = torch.from_numpy(found).T.unflatten(1, (5, 3))
    # Chips start at rows 0, 16 and 24 and columns 0 and 8; the last overwrite others.
    for row, column, r, c in ((0, 0, 0, 0), (0, 8, 0, 1), (16, 0, 0, 0), (24, 8, 1, 1)):
        chip = image['image'][None, :, row : row + 16, column : column + 16]
        torch.testing.assert_close(
            found[:, row // 8 + r, column // 8 + c],
            encoder.patch_features(chip)[0, :, r, c],
            rtol=1e-4,
            atol=1e-4,
        )
    whole = extract_patches(encoder, [image], purity=0.01, chip=None).values
    whole = torch.from_numpy(whole).T.unflatten(1, (5, 3))
    torch.testing.assert_close(
        whole, encoder.patch_features(image['image'][None])[0], rtol=1e-4, atol=1e-4
    )


def test_the_mean_of_the_chip_follows() -> None:
    image = sample(32, 32)
    arguments = BandStatistics(BANDS), [image]
    own = extract_patches(*arguments, purity=0.01, chip=16).values.reshape(4, 4, -1)
    both = extract_patches(*arguments, purity=0.01, chip=16, context=True).values
    both = both.reshape(4, 4, 2, -1)
    np.testing.assert_array_equal(both[..., 0, :], own)
    mean = own[2:, :2].mean(axis=(0, 1))
    np.testing.assert_allclose(both[2, 1, 1], mean, rtol=1e-5)
    np.testing.assert_array_equal(both[3, 0, 1], both[2, 1, 1])


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r'purity: 0 is not in \(0, 1\]'):
        patch_labels(torch.zeros(8, 8, dtype=torch.long), 8, purity=0)
    with pytest.raises(ValueError, match='mask: 8 x 9 pixels cannot be cut'):
        patch_labels(torch.zeros(8, 9, dtype=torch.long), 8)
    with pytest.raises(ValueError, match=r'n_splits=3'):
        grouped_folds(np.arange(6) % 2, np.arange(6) // 3, folds=3)
