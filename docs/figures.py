# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Draw figures of docs/ on real Sentinel-2 imagery: concepts, stac, encoders.

Needs: the real data (SIGMAE_DATA, default ../shared/data), and the extra xarray. Takes:
a minute.

    python docs/figures.py
"""

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rioxarray
import torch
from matplotlib.figure import Figure
from rasterio.errors import NotGeoreferencedWarning
from sklearn.decomposition import PCA
from torch import Tensor

from torchgeo_sigmae import BatchSpec, SIGMAE_Weights, SIGMAETask
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS as BANDS
from torchgeo_sigmae.datasets.scenes import RasterScene
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.maps import lazy
from torchgeo_sigmae.masking import MaskSchedule, sample_noise
from torchgeo_sigmae.plotting import plot_indices, plot_saliency, rgb_channels
from torchgeo_sigmae.plotting.canvas import colors
from torchgeo_sigmae.transforms import (
    PatchSaliency,
    patch_statistics,
    spectral_indices,
)

DATA = Path(
    os.environ.get('SIGMAE_DATA', Path(__file__).parents[1].parent / 'shared' / 'data')
)
#: A place none of our weights were trained on, and where in it the chip begins.
PLACE, ROW, COLUMN, SIZE = '433D_629L_3_1', 24, 96, 96
PATCH = 8


def chip(data: Path) -> Tensor:
    """Digital numbers ``(10, 96, 96)``."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(data / 'landcover' / PLACE / 'L2A.tif') as file:
            layers = [file.descriptions.index(band) + 1 for band in BANDS]
            window = rasterio.windows.Window(COLUMN, ROW, SIZE, SIZE)
            return torch.from_numpy(file.read(layers, window=window).astype('float32'))


def natural_colors(image: Tensor) -> np.ndarray:
    """Natural colors ``(H, W, 3)`` in [0, 1]."""
    bands = image[rgb_channels(BANDS)].numpy()
    return colors(bands)


def hide(picture: np.ndarray, hidden: Tensor) -> np.ndarray:
    """The picture with hidden patches ``(h, w)`` in gray."""
    pixels = hidden.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1).numpy()
    return np.where(pixels[..., None], 0.75, picture)


def draw(schedule: MaskSchedule, saliency: Tensor, progress: float) -> Tensor:
    """Hidden tokens, boolean ``(B, G * N)``."""
    noise = sample_noise(0, torch.arange(len(saliency)), saliency.shape[1])
    masked = schedule.mask(saliency, noise, progress).masked
    return torch.zeros_like(saliency, dtype=torch.bool).scatter(1, masked, True)


def panels(rows: int, columns: int, side: float = 2.2) -> tuple[Figure, Any]:
    """A figure and its axes, without ticks; the side of a panel in inches."""
    figure = Figure(figsize=(side * columns, 1.05 * side * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def curriculum_figure(image: Tensor, saliency: Tensor) -> Figure:
    """A mask at the start and at the end, and how often a patch is visible."""
    natural, score = natural_colors(image), saliency.flatten()[None]
    schedule = MaskSchedule(ratio=0.75, strength=(0.0, 2.0))
    figure, axes = panels(1, 5)
    axes[0, 0].imshow(natural)
    axes[0, 0].set_title('image')
    axes[0, 1].imshow(saliency, vmin=0, vmax=1)
    axes[0, 1].set_title('saliency')
    for axis, progress in zip(axes[0, 2:4], (0.0, 1.0), strict=True):
        hidden = draw(schedule, score, progress)[0].view(saliency.shape)
        axis.imshow(hide(natural, hidden))
        axis.set_title(f'a mask, progress {progress:g}')
    often = ~draw(schedule, score.expand(20_000, -1), 1.0)
    shares = often.float().mean(0).view(saliency.shape)
    shown = axes[0, 4].imshow(shares, vmin=0, cmap='magma')
    axes[0, 4].set_title('visible how often, progress 1', fontsize=9)
    figure.colorbar(shown, ax=axes[0, 4], shrink=0.7)
    return figure


def visibility_figure(saliency: Tensor) -> Figure:
    """Probability of being visible by tenth of saliency, for several strengths."""
    order = saliency.flatten().argsort()
    score = saliency.flatten()[None].expand(20_000, -1)
    figure = Figure(figsize=(5.5, 3.2), layout='constrained')
    axis = figure.subplots()
    for beta in (0.0, 1.0, 2.0, 4.0):
        schedule = MaskSchedule(ratio=0.75, strength=(beta, beta))
        visible = ~draw(schedule, score, 1.0)
        shares = visible.float().mean(0)[order]
        tenths = [float(part.mean()) for part in shares.tensor_split(10)]
        axis.plot(range(1, 11), tenths, marker='o', label=f'strength {beta:g}')
    axis.axhline(0.25, color='gray', linewidth=0.8, linestyle=':')
    axis.set_xticks(range(1, 11))
    axis.set_xlabel('tenth of the patches, by rising saliency')
    axis.set_ylabel('share of draws in which visible')
    axis.set_ylim(0)
    axis.legend()
    return figure


def cubes_figure(image: Tensor, saliency: Tensor) -> Figure:
    """What is hidden together, cube by cube."""
    rows = (
        ('SIGMAE\nrandom', 'random', 1),
        ('S2MAE\nrandom', 'random', 5),
        ('S2MAE\nspatial', 'spatial', 5),
        ('S2MAE\ngroup', 'group', 5),
        ('S2MAE\nchannel', 'channel', 5),
    )
    figure, axes = panels(len(rows), 5, 1.5)
    for row, (title, masking, groups) in zip(axes, rows, strict=True):
        score = saliency.flatten().repeat(groups)[None]
        hidden = draw(MaskSchedule(masking, 0.75, groups=groups), score, 0.0)
        grids = hidden.view(groups, *saliency.shape).expand(5, -1, -1)
        row[0].set_ylabel(title)
        for axis, grid, pair in zip(row, grids, image.split(2), strict=True):
            gray = pair.mean(0).numpy()
            low, high = np.percentile(gray, (2, 98))
            gray = np.clip((gray - low) / (high - low), 0, 1)
            axis.imshow(hide(np.repeat(gray[..., None], 3, -1) * [0.5, 0.7, 1.0], grid))
    for axis, first in zip(axes[0], range(0, 10, 2), strict=True):
        axis.set_title(', '.join(BANDS[first : first + 2]))
    return figure


def reconstruction_figure(image: Tensor) -> Figure:
    """What the decoder of the packaged weights makes of a place it never saw."""
    known = SIGMAE_Weights.SENTINEL2.read().info
    task = SIGMAETask(
        known['model'],
        weights=SIGMAE_Weights.SENTINEL2,
        size=SIZE,
        mask_ratio=0.75,
        norm_pix_loss=True,
        decoder_dim=128,
        decoder_depth=2,
        decoder_num_heads=4,
        batch=BatchSpec(mean=known['mean'], std=known['std'], normalize=True),
    )
    return task.plot(task.reconstruct(image[None]))


def region_figure(data: Path) -> Figure:
    """A region in four chunks of Dask, whose borders its maps do not show."""
    path = next((data / 'scenes').glob('majortom*T48QUE*.tif'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        region = rioxarray.open_rasterio(path, chunks={'x': 512, 'y': 512})
    region = region.assign_coords(band=list(region.attrs['long_name']))
    region = region[:, :1024, :1024]
    rgb = region.sel(band=['B04', 'B03', 'B02']).values
    saliency = lazy.saliency(region, window=512).sel(band='saliency').values
    encoder = FrozenEncoder.load(SIGMAE_Weights.SENTINEL2)
    embeddings = np.moveaxis(lazy.embed(region, encoder, window=512).values, 0, -1)
    figure, axes = panels(1, 3, 3.4)
    figure.set_size_inches(10.2, 3.8)
    axes[0, 0].imshow(colors(rgb.astype('float32')))
    axes[0, 0].axvline(512, color='white', linewidth=0.8)
    axes[0, 0].axhline(512, color='white', linewidth=0.8)
    axes[0, 0].set_title('region in four chunks')
    axes[0, 1].imshow(saliency, vmin=0, vmax=np.nanquantile(saliency, 0.995))
    axes[0, 1].set_title('saliency')
    axes[0, 2].imshow(components(embeddings))
    axes[0, 2].set_title('embeddings, three components')
    return figure


def features_figure(data: Path) -> Figure:
    """What single tokens of three blocks tell of a place that no weights have seen."""
    folder = next((data / 'landcover').glob('*/L2A.tif')).parent
    image = RasterScene.open(str(folder / 'L2A.tif'), BANDS).read()[:, :192, :192]
    with rasterio.open(folder / 'lulc.tif') as file:
        cover = file.read(1)[:192, :192]
    # Nine chips of the size of pretraining.
    chips = torch.from_numpy(image).unfold(1, 64, 64).unfold(2, 64, 64)
    chips = chips.permute(1, 2, 0, 3, 4).flatten(0, 1)
    encoder = FrozenEncoder.load(SIGMAE_Weights.SENTINEL2)
    figure, axes = panels(1, 5)
    axes[0, 0].imshow(colors(image[rgb_channels(BANDS)]))
    axes[0, 0].set_title('192 x 192 px')
    axes[0, 1].imshow(cover, cmap='tab20', interpolation='nearest')
    axes[0, 1].set_title('land cover')
    for axis, block in zip(axes[0, 2:], (3, 6, 12), strict=True):
        encoder.depth = block
        maps = encoder.patch_features(chips).unflatten(0, (3, 3))
        tokens = maps.permute(0, 3, 1, 4, 2).reshape(24, 24, -1)
        axis.imshow(components(tokens.numpy()))
        axis.set_title(f'tokens of block {block}')
    return figure


def components(values: np.ndarray) -> np.ndarray:
    """Three principal components of vectors ``(H, W, D)`` as colors."""
    scores = PCA(3).fit_transform(values.reshape(-1, values.shape[-1]))
    low, high = np.percentile(scores, (2, 98), axis=0)
    return ((scores - low) / (high - low)).clip(0, 1).reshape(*values.shape[:-1], 3)


def main(data: Path, output: Path) -> None:
    """Draw all figures.

    Args:
        data: Folder of the real data.
        output: Folder for the figures.
    """
    image = chip(data)
    indices = spectral_indices(image * 1e-4, BANDS)
    richness, heterogeneity = patch_statistics(indices, PATCH)
    saliency = PatchSaliency(BANDS, PATCH).saliency(image)
    figures = {
        'indices': plot_indices(image, BANDS),
        'saliency': plot_saliency(
            image * 1e-4,
            saliency,
            BANDS,
            richness=richness,
            heterogeneity=heterogeneity,
        ),
        'curriculum': curriculum_figure(image, saliency),
        'visibility': visibility_figure(saliency),
        'cubes': cubes_figure(image, saliency),
        'reconstruction': reconstruction_figure(image),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(output / f'concepts_{name}.png', dpi=80)
    region_figure(data).savefig(output / 'map_lazy.png', dpi=80)
    features_figure(data).savefig(output / 'encoder_features.png', dpi=80)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path(__file__).parent / 'images')
    main(**vars(parser.parse_args()))
