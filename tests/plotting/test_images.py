# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import TwoSlopeNorm, to_rgb
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window
from torch import Tensor

from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.masking import random_mask, sample_noise
from torchgeo_sigmae.patches import valid_values
from torchgeo_sigmae.plotting import plot_indices, plot_mask, plot_saliency
from torchgeo_sigmae.transforms import (
    PatchSaliency,
    SpectralIndex,
    patch_statistics,
    spectral_indices,
)

BANDS = SENTINEL2_TEN_BANDS
MAGENTA = to_rgb('#d62ad0')


def _raw(height: int = 32, width: int = 48, nodata: bool = False) -> Tensor:
    """Digital numbers, with a corner of 8 x 8 pixels missing if wanted."""
    image = torch.randint(1, 10000, (10, height, width)).float()
    if nodata:
        image[:, :8, :8] = 0
    return image


def _shown(axis, number: int = 0) -> np.ndarray:
    """The colors of a panel, as drawn, ``(H, W, 3 or 4)``."""
    drawn = axis.images[number]
    data = drawn.get_array()
    return np.asarray(data) if data.ndim == 3 else drawn.to_rgba(data)


def _values(axis, number: int = 0) -> np.ndarray:
    return np.ma.filled(axis.images[number].get_array(), np.nan)


def _bar(axis, number: int = -1):
    return axis.images[number].colorbar


@pytest.fixture(scope='module')
def scene(real_data: Callable[[str], Path]) -> tuple[Tensor, tuple[str, ...]]:
    """240 x 240 pixels of wetland, fields and rivers, and the names of their bands."""
    path = next(real_data('scenes').glob('majortom__S2B*48QUE*.tif'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)  # on purpose
        file = rasterio.open(path)
    with file:
        image = file.read(window=Window(300, 300, 240, 240)).astype('float32')
        return torch.from_numpy(image), file.descriptions


def test_indices_in_their_panels() -> None:
    image = _raw()
    figure = plot_indices(image, BANDS, ('NDVI', 'BSI'))
    expected = spectral_indices(image * 1e-4, BANDS, ('NDVI', 'BSI'))
    titles = [axis.get_title() for axis in figure.axes]
    ranges = [f'{layer.min():.2f} to {layer.max():.2f}' for layer in expected]
    assert titles == [
        'Image (B04, B03, B02)',
        f'NDVI, {ranges[0]}',
        f'BSI, {ranges[1]}',
    ]
    for axis, layer in zip(figure.axes[1:], expected, strict=True):
        np.testing.assert_allclose(_values(axis), layer)
        bar = _bar(axis)
        assert (bar.vmin, bar.vmax, bar.extend) == (-1, 1, 'neither')
        assert axis.images[0].cmap.name == 'BrBG'
    assert figure.get_supxlabel() == ''
    assert all(len(axis.get_xticks()) == 0 for axis in figure.axes)


def test_no_figure_is_left_with_pyplot() -> None:
    plot_indices(_raw(), BANDS)
    plot_mask(_raw(), torch.ones(32, 48).bool(), BANDS)
    assert plt.get_fignums() == []


def test_scale_and_offset_make_reflectance() -> None:
    evi = SpectralIndex('EVI2', '2.5 * (nir - red) / (nir + 2.4 * red + 1)', 'x')
    image = _raw()
    figure = plot_indices(image + 1000, BANDS, (evi,), offset=-0.1)
    expected = spectral_indices(image * 1e-4, BANDS, (evi,))[0]
    np.testing.assert_allclose(_values(figure.axes[1]), expected, atol=1e-5)


def test_colors_of_index_values() -> None:
    """Middle gray-white at 0 whatever the range; no diverging map on one side of 0."""
    nir, red = BANDS.index('B08'), BANDS.index('B04')
    image = torch.full((10, 8, 8), 0.3)
    image[nir, :, :4] = 0.8
    image[red, 0] = image[nir, 0]
    lopsided = SpectralIndex('D', 'nir - red', 'x', (-0.25, 1))
    positive = SpectralIndex('S', 'nir + red', 'x', (0, 2))
    figure = plot_indices(image, BANDS, (lopsided, positive), scale=1)
    drawn = figure.axes[1].images[0]
    assert isinstance(drawn.norm, TwoSlopeNorm)
    assert drawn.get_clim() == (-0.25, 1)
    np.testing.assert_allclose(_shown(figure.axes[1])[0, 0], drawn.cmap(0.5), atol=0.01)
    np.testing.assert_allclose(
        _shown(figure.axes[1])[1, 0], drawn.cmap(0.75), atol=0.01
    )
    drawn = figure.axes[2].images[0]
    assert drawn.cmap.name == 'viridis'
    assert drawn.get_clim() == (0, 2)
    assert figure.axes[1].get_title() == 'D, 0.00 to 0.50'


def test_index_without_limits_spans_what_is_usual() -> None:
    ratio = SpectralIndex('RATIO', 'nir / red', 'x', (0, float('inf')))
    image = torch.full((10, 20, 20), 0.1)
    image[BANDS.index('B08')] = torch.linspace(0.1, 0.2, 400).view(20, 20)
    image[BANDS.index('B08'), 0, 0] = 80
    axis = plot_indices(image, BANDS, (ratio,), scale=1).axes[1]
    assert axis.get_title() == 'RATIO, 1 to 800'
    low, high = axis.images[0].get_clim()
    assert low == 0
    assert 1.9 < high <= 2.1
    assert _bar(axis).extend == 'max'


def test_small_negative_values_are_not_minus_zero() -> None:
    image = torch.full((10, 8, 8), 0.5)
    image[BANDS.index('B08'), 0] = 0.4999
    assert plot_indices(image, BANDS, ('NDVI',), scale=1).axes[1].get_title() == (
        'NDVI, 0.00 to 0.00'
    )


@pytest.mark.parametrize('missing', [0.0, torch.nan, torch.inf])
def test_missing_pixels_of_indices(missing: float) -> None:
    image = _raw(nodata=True)
    image[:, :8, :8] = missing
    if missing:
        image[3, :8, :8] = 5000  # one bad band is enough
    figure = plot_indices(image, BANDS)
    assert figure.get_supxlabel() == 'magenta: no data'
    for axis in figure.axes:
        colors = _shown(axis)[..., :3]
        np.testing.assert_allclose(colors[:8, :8], np.full((8, 8, 3), MAGENTA))
        assert not np.isclose(colors[8:, 8:], MAGENTA).all(axis=-1).any()
    visible = spectral_indices(image * 1e-4, BANDS, ('NDVI',))[0][
        valid_values(image, 0.0)[0]
    ]
    assert (
        figure.axes[1].get_title()
        == f'NDVI, {visible.min():.2f} to {visible.max():.2f}'
    )


def test_nodata_can_be_data() -> None:
    image = _raw(nodata=True)
    assert plot_indices(image, BANDS, nodata=None).get_supxlabel() == ''
    image[:, :8, :8] = -9999
    assert plot_indices(image, BANDS, nodata=-9999.0).get_supxlabel() != ''


def test_nothing_but_nodata() -> None:
    image = torch.zeros(10, 16, 16)
    ratio = SpectralIndex('RATIO', 'nir / red', 'x', (-float('inf'), float('inf')))
    figure = plot_indices(image, BANDS, ('NDVI', ratio))
    titles = [axis.get_title() for axis in figure.axes[1:]]
    assert titles == ['NDVI, no data', 'RATIO, no data']
    zeros = torch.zeros(2, 2)
    plot_saliency(image, zeros, BANDS, richness=zeros, heterogeneity=zeros)
    plot_mask(image, zeros.bool(), BANDS)


def test_many_indices_wrap() -> None:
    figure = plot_indices(_raw(), BANDS, ('NDVI', 'NDWI', 'NDBI', 'EVI', 'BSI'))
    assert len(figure.axes) == 6
    rows = {round(axis.get_position().y0, 2) for axis in figure.axes}
    assert len(rows) == 2


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=10, deadline=None)
def test_no_text_is_cut_off(height: int, width: int, count: int) -> None:
    """Whatever the shape: every title and color bar lies within the figure."""
    names = ('NDVI', 'NDWI', 'NDBI', 'EVI', 'BSI', 'NDMI')[:count]
    image = _raw(height, width)
    image[:, 0, 0] = 0
    figure = plot_indices(image, BANDS, names)
    figure.canvas.draw()
    box = figure.get_tightbbox()
    assert box.x0 > -0.03
    assert box.y0 > -0.03
    assert box.x1 < figure.get_figwidth() + 0.03
    assert box.y1 < figure.get_figheight() + 0.03


def test_saliency_lies_over_gray() -> None:
    image = _raw() * 1e-4
    saliency = torch.rand(4, 6)
    figure = plot_saliency(image, saliency, BANDS)
    assert [axis.get_title() for axis in figure.axes] == [
        'Image (B04, B03, B02)',
        'Patch saliency',
    ]
    gray, heat = figure.axes[1].images
    gray = np.asarray(gray.get_array())
    assert np.allclose(gray, gray[..., :1])
    natural = _shown(figure.axes[0]).mean(axis=-1)
    assert np.corrcoef(natural.ravel(), gray[..., 0].ravel())[0, 1] > 0.999
    assert heat.get_alpha() == 0.6
    assert heat.get_clim() == (0, 1)
    expected = np.kron(saliency.numpy(), np.ones((8, 8)))
    np.testing.assert_allclose(_values(figure.axes[1], 1), expected)
    assert (_bar(figure.axes[1]).vmin, _bar(figure.axes[1]).vmax) == (0, 1)


def test_statistics_in_separate_panels() -> None:
    image = _raw(nodata=True) * 1e-4
    saliency, richness, heterogeneity = torch.rand(3, 4, 6)
    heterogeneity[0, 0] = 9  # a patch without data: must not stretch the colors
    figure = plot_saliency(
        image, saliency, BANDS, richness=richness, heterogeneity=heterogeneity
    )
    titles = [axis.get_title() for axis in figure.axes[2:]]
    assert titles == ['Semantic richness', 'Heterogeneity']
    assert _bar(figure.axes[2]).vmax == richness.flatten()[1:].max()
    assert _bar(figure.axes[3]).vmax == heterogeneity.flatten()[1:].max()
    assert _bar(figure.axes[3]).vmin == 0
    for axis in (figure.axes[0], *figure.axes[2:]):
        np.testing.assert_allclose(_shown(axis)[0, 0, :3], MAGENTA)
    # The overlay is transparent where there is no data, and magenta lies below.
    assert _shown(figure.axes[1], 1)[0, 0, 3] == 0
    np.testing.assert_allclose(_shown(figure.axes[1])[0, 0], MAGENTA)
    alone = plot_saliency(image, saliency, BANDS, heterogeneity=heterogeneity)
    assert [axis.get_title() for axis in alone.axes[2:]] == ['Heterogeneity']


def test_saliency_of_a_real_scene(scene: tuple[Tensor, tuple[str, ...]]) -> None:
    image, bands = scene[0].clone(), scene[1]
    image[:, :60, :80] = 0
    saliency = PatchSaliency(bands, 10).saliency(image)
    layers = spectral_indices(image * 1e-4, bands)
    richness, heterogeneity = patch_statistics(layers, 10, valid_values(image, 0.0)[0])
    figure = plot_saliency(image * 1e-4, saliency, bands, richness, heterogeneity)
    assert len(figure.axes) == 4
    assert figure.get_supxlabel() == 'magenta: no data'
    assert np.isnan(_values(figure.axes[1], 1)).sum() == 60 * 80
    assert np.nanmax(_values(figure.axes[3])) == heterogeneity.max()


def test_indices_of_a_real_scene(
    scene: tuple[Tensor, tuple[str, ...]], tmp_path: Path
) -> None:
    """Water is water: where NDWI is brown to green, NDVI is green to brown."""
    image, bands = scene
    figure = plot_indices(image, bands)
    ndvi, ndwi = (_shown(axis)[..., :3] for axis in figure.axes[1:3])
    water = _values(figure.axes[2]) > 0.3
    assert water.sum() > 100
    assert (ndwi[water][:, 1] > ndwi[water][:, 0]).all()
    assert (ndvi[water][:, 0] >= ndvi[water][:, 1]).mean() > 0.9
    figure.savefig(tmp_path / 'indices.png')
    assert (tmp_path / 'indices.png').stat().st_size > 10000


@given(st.integers(1, 8), st.floats(0.05, 0.95))
@settings(max_examples=10, deadline=None)
def test_masks_of_pixels_and_of_patches(patch: int, ratio: float) -> None:
    noise = sample_noise(0, torch.tensor([0]), 12)
    hidden = random_mask(noise, ratio).masked
    patches = torch.zeros(1, 12, dtype=torch.bool).scatter(1, hidden, True).view(3, 4)
    pixels = patches.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    image = torch.rand(10, 3 * patch, 4 * patch)
    figure = plot_mask(image, {'patches': patches, 'pixels': pixels}, BANDS)
    natural, of_patches, of_pixels = map(_shown, figure.axes)
    np.testing.assert_array_equal(of_patches, of_pixels)
    assert (of_patches[pixels] == 0.35).all()
    np.testing.assert_array_equal(of_patches[~pixels], natural[~pixels])
    share = f'{patches.float().mean():.0%} masked'
    assert [axis.get_xlabel() for axis in figure.axes] == ['', share, share]
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ['Image (B04, B03, B02)', 'patches', 'pixels']


def test_one_mask_needs_no_title() -> None:
    image = _raw(nodata=True) * 1e-4
    mask = torch.zeros(32, 48, dtype=torch.bool)
    mask[:8, :4] = True
    figure = plot_mask(image, mask, BANDS)
    assert figure.axes[1].get_title() == 'Visible to the encoder'
    shown = _shown(figure.axes[1])
    np.testing.assert_allclose(shown[0, 0], (0.35,) * 3)
    np.testing.assert_allclose(shown[0, 6], MAGENTA)
    assert figure.get_supxlabel() == 'magenta: no data'


def test_other_sensors() -> None:
    bands = ('SR_B2', 'SR_B3', 'SR_B4', 'SR_B5', 'SR_B6')
    figure = plot_indices(torch.rand(5, 8, 8), BandSet(bands, 'landsat8'), scale=1)
    assert figure.axes[0].get_title() == 'Image (B4, B3, B2)'
    figure = plot_mask(
        torch.rand(5, 8, 8), torch.eye(8).bool(), BandSet(bands, 'landsat8')
    )
    assert figure.axes[0].get_title() == 'Image (B4, B3, B2)'


def test_tensors_with_gradients_and_half_precision() -> None:
    image = (_raw() * 1e-4).requires_grad_()
    plot_saliency(image, torch.rand(4, 6, requires_grad=True), BANDS)
    plot_indices(image, BANDS, scale=1)
    plot_saliency(image.bfloat16(), torch.rand(4, 6).bfloat16(), BANDS)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            {'image': torch.rand(2, 10, 8, 8)},
            r'image: expected \(10, H, W\).*image\[0\]',
        ),
        ({'image': torch.rand(9, 8, 8)}, r'got \(9, 8, 8\).*bands='),
        ({'image': torch.rand(10, 0, 8)}, r'image: .*no pixels'),
        ({'indices': ()}, r"indices: none given.*'NDVI'"),
        ({'indices': ('NOPE',)}, r"indices: 'NOPE' is unknown"),
        ({'bands': (*BANDS[:9], 'B99')}, r"'B99' is not a band"),
    ],
)
def test_bad_input_for_indices(arguments: dict, message: str) -> None:
    arguments = {'image': torch.rand(10, 8, 8), 'bands': BANDS, **arguments}
    with pytest.raises(ValueError, match=message):
        plot_indices(**arguments)


def test_integers_are_refused() -> None:
    image = torch.ones(10, 8, 8, dtype=torch.int16)
    with pytest.raises(TypeError, match=r'image: .*int16.*image\.float\(\)'):
        plot_indices(image, BANDS)
    with pytest.raises(TypeError, match='image'):
        plot_saliency(image, torch.zeros(1, 1), BANDS)
    with pytest.raises(TypeError, match='image'):
        plot_mask(image, torch.zeros(1, 1).bool(), BANDS)


@pytest.mark.parametrize('value', [-0.01, 1.5, torch.nan])
def test_saliency_out_of_range(value: float) -> None:
    saliency = torch.full((2, 2), 0.5)
    saliency[0, 1] = value
    with pytest.raises(ValueError, match=r'saliency: .*not in \[0, 1\].*PatchSaliency'):
        plot_saliency(torch.rand(10, 16, 16), saliency, BANDS)


@pytest.mark.parametrize('shape', [(3, 4), (4, 3), (2, 2), (1, 4, 6), (0, 6), (64, 96)])
def test_grids_that_do_not_fit(shape: tuple[int, ...]) -> None:
    image, fits = torch.rand(10, 32, 48), torch.rand(4, 6)
    grid = torch.zeros(shape)
    with pytest.raises(ValueError, match=r'saliency: a grid of .* 32 x 48 pixels'):
        plot_saliency(image, grid, BANDS)
    with pytest.raises(ValueError, match='richness: a grid of'):
        plot_saliency(image, fits, BANDS, richness=grid)
    with pytest.raises(ValueError, match='heterogeneity: a grid of'):
        plot_saliency(image, fits, BANDS, heterogeneity=grid)
    with pytest.raises(ValueError, match="mask: 'End': a grid of"):
        plot_mask(image, {'Start': fits.bool(), 'End': grid.bool()}, BANDS)


def test_masks_that_are_none() -> None:
    image = torch.rand(10, 16, 16)
    with pytest.raises(ValueError, match='mask: none given'):
        plot_mask(image, {}, BANDS)
    with pytest.raises(TypeError, match=r"'End'.*float32.*mask\.bool\(\)"):
        plot_mask(image, {'End': torch.zeros(2, 2)}, BANDS)
