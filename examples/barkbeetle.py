# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Your own image pairs in TorchGeo: bark-beetle damage in forest sites.

Turns labeled GeoTIFF pairs into a TorchGeo dataset and datamodule, for segmentation
(2020 -> damage) and change detection (2019 and 2020 -> damage). Copy it for your own.
Needs: one folder per site, ``<site>/2019.tif``, ``2020.tif``, ``mask.tif`` (damage: 1).
Takes: nothing by itself; segment_barkbeetle.yaml, extract_barkbeetle.yaml and
change_barkbeetle.yaml use it, with ``PYTHONPATH=examples``.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import kornia.augmentation as K
import numpy as np
import rasterio
import torch
from matplotlib.figure import Figure
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset

from torchgeo_sigmae import BitemporalAugmentation
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.datasets import RasterScene
from torchgeo_sigmae.plotting.canvas import colors, panel_grid

#: Label of padding: no loss, no metric.
IGNORE = 255

#: Which last digit of ``int(site) % 5`` belongs where.
SPLITS = {'train': (2, 3, 4), 'val': (1,), 'test': (0,)}


class BarkBeetle(NonGeoDataset):
    """Pairs of Sentinel-2 images of forest sites, and the damage seen in the second.

    Samples are ``{'image': (dates, C, H, W), 'mask': (1, H, W)}``: raw values in
    float32, NaN where there is no data, and labels 0, 1 and :data:`IGNORE`.
    """

    def __init__(
        self,
        root: str | Path = 'data/barkbeetle',
        split: str = 'train',
        bands: Sequence[str] = SENTINEL2_TEN_BANDS,
        dates: Sequence[str] = ('2019', '2020'),
        size: int = 64,
    ) -> None:
        """Initialize a new BarkBeetle instance.

        Args:
            root: Folder of the sites.
            split: One of 'train', 'val' or 'test'.
            bands: Bands to load.
            dates: Which of the images to load.
            size: Side of the random crops for training; smaller sites are padded. For
                evaluation sites are whole, padded to a multiple of 32.

        Raises:
            FileNotFoundError: If there are no sites in *root*.
        """
        self.bands = tuple(bands)
        self.dates = tuple(dates)
        self.size = size if split == 'train' else None
        self.sites = sorted(
            path.parent
            for path in Path(root).glob('*/mask.tif')
            if int(path.parent.name) % 5 in SPLITS[split]
        )
        if not self.sites:
            raise FileNotFoundError(f'root: no <site>/mask.tif under {root}.')

    def __len__(self) -> int:
        """Return the number of sites.

        Returns:
            Length of the dataset.
        """
        return len(self.sites)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an index within the dataset.

        Args:
            index: Index to return.

        Returns:
            The images and the label of a site, see above.
        """
        site = self.sites[index]
        scenes = [
            RasterScene.open(str(site / f'{date}.tif'), self.bands)
            for date in self.dates
        ]
        height, width = scenes[-1].height, scenes[-1].width
        row = column = 0
        if self.size:
            row, column = (
                int(torch.randint(max(side - self.size, 0) + 1, ()))
                for side in (height, width)
            )
            height = width = self.size
        else:
            height, width = (math.ceil(side / 32) * 32 for side in (height, width))
        window = Window(column, row, width, height)
        image = np.stack([scene.read(window) for scene in scenes])
        with warnings.catch_warnings():
            # These sites have no georeference.
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(site / 'mask.tif') as file:
                label = file.read(1)[row : row + height, column : column + width]
        mask = np.full((1, height, width), IGNORE, np.int64)
        mask[:, : label.shape[0], : label.shape[1]] = label
        return {'image': torch.from_numpy(image), 'mask': torch.from_numpy(mask)}

    def plot(
        self, sample: dict[str, Any], suptitle: str | None = None, **kwargs: Any
    ) -> Figure:
        """Plot a sample from the dataset.

        Args:
            sample: A sample returned by :meth:`__getitem__`, perhaps with a prediction.
            suptitle: Optional string to use as a suptitle.
            **kwargs: Ignored.

        Returns:
            A figure: the images, the label, the prediction.
        """
        images = sample['image'].cpu().float()
        images = images[None] if images.ndim == 3 else images
        rgb = BandSet(self.bands).channels(('red', 'green', 'blue'))
        labels = [key for key in ('mask', 'prediction') if key in sample]
        figure, axes = panel_grid(len(images) + len(labels), images.shape[-2:], False)
        for axis, image in zip(axes, images, strict=False):
            shown = image[rgb].numpy()
            axis.imshow(colors(shown))
        for axis, key in zip(axes[len(images) :], labels, strict=True):
            label = sample[key].cpu().squeeze()
            axis.imshow(label == 1, cmap='gray', vmin=0, vmax=1)
            axis.set_title({'mask': 'Damage', 'prediction': 'Prediction'}[key])
        if suptitle is not None:
            figure.suptitle(suptitle)
        return figure


class BarkBeetleDataModule(NonGeoDataModule):
    """LightningDataModule implementation for the BarkBeetle dataset."""

    #: Of the training sites, both dates, in the order of SENTINEL2_TEN_BANDS.
    band_mean: ClassVar[list[float]] = [
        325.4,
        453.5,
        404.0,
        717.2,
        1572.5,
        1891.5,
        1983.7,
        2102.7,
        1292.2,
        740.4,
    ]
    band_std: ClassVar[list[float]] = [
        193.6,
        230.6,
        319.8,
        363.1,
        482.4,
        572.8,
        642.6,
        636.2,
        759.9,
        556.5,
    ]

    def __init__(
        self,
        root: str | Path = 'data/barkbeetle',
        change: bool = False,
        size: int = 64,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        """Initialize a new BarkBeetleDataModule instance.

        Args:
            root: Folder of the sites.
            change: Whether to load both dates, or 2020 only.
            size: Side of the training crops.
            batch_size: Size of each mini-batch; validation and test take one site.
            num_workers: Number of workers for parallel data loading.
        """
        dates = ('2019', '2020') if change else ('2020',)
        super().__init__(
            BarkBeetle, batch_size, num_workers, root=root, dates=dates, size=size
        )
        self.val_batch_size = self.test_batch_size = 1
        self.mean = torch.tensor(self.band_mean)
        self.std = torch.tensor(self.band_std)
        normalize = K.Normalize(self.mean, self.std)
        self.aug = BitemporalAugmentation(normalize)
        self.train_aug = BitemporalAugmentation(
            normalize,
            K.RandomHorizontalFlip(),
            K.RandomVerticalFlip(),
            K.RandomRotation90(times=(-2, 2), p=1.0, resample='nearest'),
        )

    def on_after_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Normalize and augment; missing pixels become the mean.

        Args:
            batch: The output of your DataLoader.
            dataloader_idx: Index of the current dataloader.

        Returns:
            The batch; a single date has no time axis.
        """
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        batch['image'] = batch['image'].nan_to_num(0)
        if batch['image'].shape[1] == 1:
            batch['image'], batch['mask'] = batch['image'][:, 0], batch['mask'][:, 0]
        return batch
