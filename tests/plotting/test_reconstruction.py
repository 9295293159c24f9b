# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import numpy as np
import torch

from torchgeo_sigmae.bands import EUROSAT_BANDS, SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.plotting import plot_reconstruction, rgb_channels


def test_colors_are_red_green_blue() -> None:
    assert rgb_channels(EUROSAT_BANDS) == [3, 2, 1]
    assert rgb_channels(SENTINEL2_TEN_BANDS) == [2, 1, 0]
    assert rgb_channels(('B08', 'B11', 'B12', 'B05')) == [0, 1, 2]
    assert rgb_channels(('B08',)) == [0, 0, 0]
    assert rgb_channels(BandSet(('SR_B2', 'SR_B3', 'SR_B4'), 'landsat8')) == [2, 1, 0]


def _figure(nodata: bool = False, oracle: bool = False, images: int = 2):
    image = torch.rand(images, 10, 32, 32)
    image[:, 2, 16:] *= 0.1  # little red in the lower half
    reconstruction = image.clone()
    mask = torch.zeros(images, 32, 32, dtype=torch.bool)
    mask[:, :16] = True
    if nodata:
        image[0, :, :8] = torch.nan
    return plot_reconstruction(
        image,
        reconstruction,
        mask,
        torch.rand(images, 4, 4),
        SENTINEL2_TEN_BANDS,
        oracle=oracle,
    )


def test_what_is_drawn() -> None:
    figure = _figure()
    titles = [axis.get_title() for axis in figure.axes[:4]]
    assert titles == [
        'Image (B04, B03, B02)',
        'Patch saliency',
        'Visible to the encoder',
        'Reconstruction',
    ]
    shown = figure.axes[0].images[0].get_array()
    lower = np.asarray(shown)[16:]
    assert lower[..., 0].mean() < 0.5 * lower[..., 1].mean()
    # Every color uses the whole range, whatever its brightness.
    assert all(shown[..., i].min() == 0 and shown[..., i].max() == 1 for i in range(3))
    visible = np.asarray(figure.axes[2].images[0].get_array())
    assert np.allclose(visible[:16], 0.35)
    assert np.allclose(visible[16:], np.asarray(shown)[16:])
    assert figure.axes[2].get_xlabel() == '50% masked'
    heat = figure.axes[1].images[0]
    assert heat.get_clim() == (0, 1)
    assert heat.get_extent() == [-0.5, 31.5, 31.5, -0.5]


def test_missing_pixels_stand_out_and_oracles_are_marked() -> None:
    figure = _figure(nodata=True, oracle=True)
    pixel = np.asarray(figure.axes[0].images[0].get_array())[0, 0]
    assert pixel[0] > 0.8
    assert pixel[1] < 0.3
    assert figure.get_supxlabel() == 'magenta: no data'
    assert figure.axes[3].get_title() == 'Reconstruction (oracle statistics)'
    assert _figure().get_supxlabel() == ''


def test_no_more_rows_than_asked_and_nothing_but_nodata() -> None:
    assert len(_figure(images=9).axes) == 4 * 4 + 1
    empty = torch.full((1, 10, 16, 16), torch.nan)
    plot_reconstruction(
        empty,
        empty,
        torch.ones(1, 16, 16, dtype=torch.bool),
        torch.zeros(1, 2, 2),
        SENTINEL2_TEN_BANDS,
    )
