# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchgeo.datasets import EuroSAT

from helpers.oracles import BANDS, saliency_oracle, statistics_oracle
from torchgeo_sigmae.bands import EUROSAT_BANDS, BandSet
from torchgeo_sigmae.patches import valid_values
from torchgeo_sigmae.transforms import (
    DEFAULT_INDICES,
    PatchSaliency,
    patch_saliency,
    patch_statistics,
    spectral_indices,
)
from torchgeo_sigmae.transforms.saliency import (
    FLAT_RANGE,
    join_statistics,
    masked_indices,
)


def chip(kind: str) -> tuple[Tensor, Tensor]:
    """A reflectance chip ``(4, 32, 32)`` and its valid values."""
    image = torch.rand(4, 32, 32) * 0.4 + 0.02
    match kind:
        case 'constant':
            image = image[:, :1, :1].expand(-1, 32, 32).clone()
        case 'striped':
            image[:, :, 5:17] = 0
        case 'water':  # dark, and exactly zero in the infrared
            image = image * 0.02
            image[2:] = 0
        case 'subtle':  # a true std of about 1e-4
            image = torch.tensor([0.1, 0.08, 0.3, 0.2]).view(4, 1, 1)
            image = image * (1 + 2e-4 * torch.randn(4, 32, 32))
        case 'holes':
            image[1, ::3, ::5] = torch.nan
            image[0, 1::7, ::2] = torch.inf
            image[:, 8:16, 8:16] = torch.nan
    return image, valid_values(image, 0.0)


KINDS = ('random', 'constant', 'striped', 'water', 'subtle', 'holes')


@pytest.mark.parametrize('kind', KINDS)
def test_statistics_agree_with_float64_loop(kind: str) -> None:
    image, valid = chip(kind)
    clean = torch.where(valid, image, 0)
    indices, counted = masked_indices(clean[None], BANDS, DEFAULT_INDICES, valid[None])
    richness, heterogeneity = patch_statistics(indices, 8, counted)
    expected_r, expected_h = np.nan_to_num(
        statistics_oracle(clean.numpy(), valid.numpy(), 8)
    )
    np.testing.assert_allclose(richness[0], expected_r, rtol=1e-3, atol=1e-6)
    measurable = expected_h >= 1e-4
    np.testing.assert_allclose(
        heterogeneity[0].numpy()[measurable], expected_h[measurable], rtol=1e-3
    )
    assert heterogeneity.isfinite().all()
    if kind == 'subtle':
        assert measurable.any()
        assert (expected_h < 1e-3).all()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('alpha', [0.0, 0.5, 1.0])
def test_saliency_agrees_with_float64_loop(kind: str, alpha: float) -> None:
    image, valid = chip(kind)
    actual = patch_saliency(image, BANDS, 8, alpha=alpha, valid=valid)
    assert actual.isfinite().all()
    expected = saliency_oracle(image.numpy(), valid.numpy(), 8, alpha)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


def test_constant_chips_have_no_ranking() -> None:
    image, _ = chip('constant')
    image = image * (1 + 1e-7 * torch.randn_like(image))  # rounding noise
    for combine in ('minmax', 'rank', 'product'):
        assert (patch_saliency(image, BANDS, 8, combine=combine) == 0).all()


@settings(deadline=None, max_examples=30)
@given(factor=st.floats(0.05, 20), seed=st.integers(0, 2**31))
def test_invariant_to_a_common_reflectance_factor(factor: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(4, 32, 32, generator=generator) * 0.5 + 0.01
    torch.testing.assert_close(
        patch_saliency(image * factor, BANDS, 8),
        patch_saliency(image, BANDS, 8),
        rtol=1e-3,
        atol=1e-4,
    )


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31), combine=st.sampled_from(['minmax', 'rank', 'product'])
)
def test_in_unit_range_and_equivariant_to_flips(seed: int, combine: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 4, 24, 16, generator=generator)
    image[torch.rand(image.shape, generator=generator) < 0.01] = torch.nan
    actual = patch_saliency(image, BANDS, 8, combine=combine)
    assert actual.shape == (2, 3, 2)
    assert ((actual >= 0) & (actual <= 1)).all()
    flipped = patch_saliency(image.flip(-1), BANDS, 8, combine=combine)
    torch.testing.assert_close(flipped, actual.flip(-1), rtol=1e-4, atol=1e-5)


def test_ranks_share_ties_and_skip_invalid_patches() -> None:
    values = torch.tensor([0.1, 0.1, 0.2, 0.3]).repeat_interleave(8).expand(8, -1)
    image = torch.stack([torch.ones(8, 32), torch.ones(8, 32), 1 + values, 1 - values])
    actual = patch_saliency(image, BANDS, 8, alpha=1.0, combine='rank')
    torch.testing.assert_close(actual[0], torch.tensor([0.5, 0.5, 2.0, 3.0]) / 3)
    image[:, :, 24:] = 0
    actual = patch_saliency(
        image, BANDS, 8, alpha=1.0, combine='rank', valid=valid_values(image, 0.0)
    )
    torch.testing.assert_close(actual[0], torch.tensor([0.25, 0.25, 1.0, 0.0]))


def test_salient_patches_are_the_rich_and_the_mixed() -> None:
    image = torch.full((4, 8, 24), 0.2)  # no index says anything
    image[2, :, 8:16] = 0.6  # vegetation: rich
    image[2, :, 16::2] = 0.6  # vegetation and soil: rich and mixed
    gray, rich, mixed = patch_saliency(image, BANDS, 8, alpha=0.5)[0]
    assert gray == 0
    assert mixed > gray
    assert rich > gray
    only_h = patch_saliency(image, BANDS, 8, alpha=0.0)[0]
    torch.testing.assert_close(only_h, torch.tensor([0.0, 0.0, 1.0]))


def test_everything_invalid_is_zero() -> None:
    image = torch.full((4, 16, 16), torch.nan)
    assert (patch_saliency(image, BANDS, 8) == 0).all()


def test_transform_on_samples_and_batches() -> None:
    transform = PatchSaliency(['b3', 'red', 'nir', 'swir1'], patch_size=8)
    image, _ = chip('striped')
    single = transform({'image': image * 1e4, 'label': 3})
    assert single['label'] == 3
    batch = transform({'image': torch.stack([image, image]) * 1e4})
    torch.testing.assert_close(batch['saliency'][1], single['saliency'])
    # The stripe is nodata: the patches it fills whole are not salient.
    assert single['saliency'].shape == (4, 4)
    assert (single['saliency'][:, 1] == 0).all()
    assert 'NDVI' in repr(transform)


@pytest.mark.parametrize('combine', ['minmax', 'rank', 'product'])
def test_an_image_does_not_depend_on_its_batch(combine: str) -> None:
    images = torch.stack([chip(kind)[0] for kind in KINDS])
    together = patch_saliency(images, BANDS, 8, combine=combine)
    for image, actual in zip(images, together, strict=True):
        alone = patch_saliency(image, BANDS, 8, combine=combine)
        torch.testing.assert_close(actual, alone)


def test_zeros_are_values_to_the_function_and_nodata_to_the_transform() -> None:
    image, valid = chip('striped')
    assert not valid.all()
    every = patch_saliency(image, BANDS, 8, valid=torch.ones_like(valid))
    some = patch_saliency(image, BANDS, 8, valid=valid)
    assert not torch.equal(every, some)
    assert torch.equal(patch_saliency(image, BANDS, 8), every)
    assert torch.equal(PatchSaliency(BANDS).saliency(image), some)


def test_as_a_transform_of_torchgeos_own_dataset(eurosat_root) -> None:
    transform = PatchSaliency(EUROSAT_BANDS, patch_size=8)
    dataset = EuroSAT(eurosat_root, split='val', transforms=transform)
    raw = EuroSAT(eurosat_root, split='val')
    for i in range(3):
        sample = dataset[i]
        image = raw[i]['image'][[2, 3, 7, 10]]
        expected = saliency_oracle(image.numpy(), valid_values(image, 0.0).numpy(), 8)
        assert sample['saliency'].shape == (8, 8)
        np.testing.assert_allclose(sample['saliency'], expected, rtol=1e-3, atol=1e-4)


def test_richness_favours_vegetation_and_water(eurosat_root) -> None:
    """The figure in docs/choices.md: |NDVI| and |NDWI| of EuroSAT patches correlate."""
    dataset = EuroSAT(eurosat_root, split='train')
    images = torch.stack([dataset[i]['image'] for i in range(len(dataset))])
    indices = spectral_indices(images, EUROSAT_BANDS, ('NDVI', 'NDWI')).abs()
    patches = torch.nn.functional.avg_pool2d(indices, 8).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(patches)[0, 1].item()
    assert correlation == pytest.approx(0.88, abs=0.01)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'alpha': 1.5}, r'alpha: 1.5 is not in \[0, 1\]'),
        ({'alpha': math.nan}, r'alpha: nan is not in'),
        ({'indices': ()}, r'indices: none given. Pass at least one'),
        ({'combine': 'sum'}, "combine: 'sum' is unknown"),
        ({'bands': ('B03', 'B04', 'B08')}, r'bands: NDBI needs B08 \(nir\), B11'),
        ({'bands': ('B03', 'B04', 'B08', 'B99')}, "bands: 'B99' is not a band"),
    ],
)
def test_bad_settings_fail_at_once(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchSaliency(**{'bands': BANDS, **change})


def test_the_function_refuses_them_too() -> None:
    image, _ = chip('random')
    for change, message in (({'alpha': -0.1}, 'alpha'), ({'combine': 'sum'}, 'sum')):
        with pytest.raises(ValueError, match=message):
            patch_saliency(image, BANDS, 8, **change)


def test_no_mask_is_a_mask_of_ones() -> None:
    layers = torch.rand(2, 3, 16, 24) * 2 - 1
    plain = patch_statistics(layers, 8)
    masked = patch_statistics(layers, 8, torch.ones(2, 16, 24, dtype=torch.bool))
    for one, other in zip(plain, masked, strict=True):
        assert one.shape == (2, 2, 3)
        torch.testing.assert_close(one, other)


def test_masks_may_be_numbers() -> None:
    """As kornia hands them on."""
    image, valid = chip('striped')
    actual = patch_saliency(image, BANDS, 8, valid=valid.float())
    assert torch.equal(actual, patch_saliency(image, BANDS, 8, valid=valid))


def test_no_gradient_passes() -> None:
    image = (torch.rand(4, 16, 16) + 0.1).requires_grad_()
    assert not patch_saliency(image, BANDS, 8).requires_grad


def test_product_is_that_of_both_scaled_maps() -> None:
    image, _ = chip('random')
    r, h = (patch_saliency(image, BANDS, 8, alpha=alpha) for alpha in (1.0, 0.0))
    actual = patch_saliency(image, BANDS, 8, combine='product')
    torch.testing.assert_close(actual, r * h)
    # The mean of both unless told otherwise.
    torch.testing.assert_close(patch_saliency(image, BANDS, 8), (r + h) / 2)
    same = PatchSaliency(BANDS)({'image': image})['saliency']
    torch.testing.assert_close(same, (r + h) / 2)


def test_a_part_is_scaled_by_the_limits_of_the_whole() -> None:
    richness, heterogeneity = torch.rand(6, 8), torch.rand(6, 8) * 3
    patches = torch.rand(6, 8) > 0.2
    limits = tuple(
        (x[patches].min().item(), x[patches].max().item())
        for x in (richness, heterogeneity)
    )
    plain = join_statistics(richness, heterogeneity, patches)
    assert torch.equal(
        plain, join_statistics(richness, heterogeneity, patches, 0.5, 'minmax')
    )
    for combine in ('minmax', 'product'):
        whole = join_statistics(richness, heterogeneity, patches, 0.3, combine)
        part = join_statistics(
            richness[:3], heterogeneity[:3], patches[:3], 0.3, combine, limits
        )
        torch.testing.assert_close(part, whole[:3])


def test_one_patch_alone_is_not_salient() -> None:
    image, _ = chip('random')
    valid = torch.zeros(32, 32, dtype=torch.bool)
    valid[:8, :8] = True
    for combine in ('minmax', 'rank', 'product'):
        assert (
            patch_saliency(image, BANDS, 8, combine=combine, valid=valid) == 0
        ).all()


def test_reflectance_is_scaled_and_shifted() -> None:
    image, _ = chip('random')
    bands = ('B02', 'B04', 'B08', 'B11')
    options = {'indices': ('EVI',), 'nodata': None}
    expected = patch_saliency(image, bands, 8, indices=('EVI',))
    actual = PatchSaliency(bands, **options).saliency(image)
    torch.testing.assert_close(actual, expected)
    shifted = PatchSaliency(bands, **options, scale=1e-4, offset=-0.1)
    torch.testing.assert_close(
        shifted.saliency(image * 1e4 + 1000), expected, rtol=1e-3, atol=1e-4
    )
    only = PatchSaliency(bands, **options, offset=-0.1)
    torch.testing.assert_close(
        only.saliency(image + 0.1), expected, rtol=1e-3, atol=1e-4
    )


def test_any_nodata_value_is_left_out() -> None:
    image, _ = chip('random')
    image[:, :8, :8] = -1
    transform = PatchSaliency(BANDS, nodata=-1)
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[:8, :8] = False
    expected = patch_saliency(image, BANDS, 8, valid=valid)
    assert torch.equal(transform.saliency(image), expected)
    # A mask that is given is taken.
    assert torch.equal(transform.saliency(image, valid), expected)
    kept = PatchSaliency(BANDS, nodata=None).saliency(image)
    assert not torch.equal(kept, expected)


@pytest.mark.parametrize(
    ('size', 'instead'),
    [
        ((30, 32), '24 x 32'),
        ((5, 32), '8 x 32'),
        ((32, 0), '32 x 8'),
        ((0, 8), '8 x 8'),
        ((17, 9), '16 x 8'),
    ],
)
def test_a_size_that_fits_is_named(size: tuple[int, int], instead: str) -> None:
    message = f'{size[0]} x {size[1]} pixels cannot be cut .* for example {instead}'
    with pytest.raises(ValueError, match=f'image: {message}'):
        patch_saliency(torch.rand(4, *size), BANDS, 8)
    with pytest.raises(ValueError, match=message):
        patch_statistics(torch.rand(3, *size), 8)


def test_another_sensor_has_other_bands() -> None:
    image, _ = chip('random')
    bands = ('B3', 'B4', 'B5', 'B6')
    actual = PatchSaliency(BandSet(bands, 'landsat8'))({'image': image})['saliency']
    torch.testing.assert_close(actual, patch_saliency(image, BANDS, 8))


def test_a_single_valid_pixel_speaks_for_its_patch() -> None:
    layers = torch.full((1, 8, 8), 0.5)
    valid = torch.zeros(8, 8, dtype=torch.bool)
    valid[3, 4] = True
    richness, heterogeneity = patch_statistics(layers, 8, valid)
    assert (richness.item(), heterogeneity.item()) == (0.5, 0.0)


def test_two_valid_patches_are_first_and_last() -> None:
    values = torch.tensor([[0.1, 0.7, 0.3]])
    patches = torch.tensor([[True, False, True]])
    actual = join_statistics(values, values, patches, combine='rank')
    assert actual.tolist() == [[0.0, 0.0, 1.0]]


def test_a_range_is_flat_below_its_limit_only() -> None:
    patches = torch.ones(1, 2, dtype=torch.bool)
    for spread, most in ((FLAT_RANGE, 1.0), (FLAT_RANGE * 0.999, 0.0)):
        values = torch.tensor([[0.0, spread]])
        assert join_statistics(values, values, patches).tolist() == [[0.0, most]]


@pytest.mark.parametrize('patch_size', [6, 8, 16])
@pytest.mark.parametrize('combine', ['minmax', 'rank', 'product'])
def test_whole_images_take_a_short_way_to_the_same_bits(
    patch_size: int, combine: str
) -> None:
    """A sample's mask must not depend on gaps in other samples of its batch."""
    image = torch.rand(3, 4, 48, 48)
    image[0] = 0.2
    valid = torch.ones_like(image, dtype=torch.bool)
    short, long = (
        patch_saliency(image, BANDS, patch_size, combine=combine, valid=v)
        for v in (None, valid)
    )
    assert torch.equal(short, long)
