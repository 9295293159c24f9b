# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A datamodule for a folder of GeoTIFF scenes."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from ..bands import SENTINEL2_TEN_BANDS, BandSet, Sensor
from ..datasets.chips import SceneChips
from ..datasets.find import GEOTIFFS, check_on_error, find_scenes, skip_on_error
from ..datasets.resumable import resumable
from ..datasets.scene_files import ReadingOptions
from ..datasets.scenes import RasterScene
from ..datasets.splits import split_scenes
from ..datasets.statistics import SceneStatistics, stored_statistics
from ..datasets.units import check_reflectance
from .base import ChipDataModule

__all__ = ('SceneDataModule', 'augmentations')

#: Scenes that take fewer bytes together are cached unless asked otherwise.
_CACHED_BYTES = 2**30

#: Scenes by split: 'train', 'val' and 'test'.
Split = dict[str, list[RasterScene]]


class SceneDataModule(ChipDataModule):
    """LightningDataModule for a folder of GeoTIFF scenes of any size.

    Chips are cut by windowed reading and normalized per band, by mean and standard
    deviation of the training scenes. These are computed once and stored in
    ``scene_statistics.json`` in the trainer's ``default_root_dir``. Missing values are
    NaN.

    Where *scale*, *offset* or a file says how values become reflectance, the values of
    chips before normalization are reflectance x 10000, the unit that ``SIGMAETask``
    expects by default. Else they are those of the file.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        root: str | Path = 'data',
        bands: Sequence[str] = SENTINEL2_TEN_BANDS,
        size: int = 96,
        batch_size: int = 32,
        num_workers: int = 0,
        paths: str | Sequence[str] = GEOTIFFS,
        val_paths: str | Sequence[str] | None = None,
        test_paths: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] = (),
        val_fraction: float = 0.1,
        length: int | None = None,
        val_length: int = 1024,
        bands_in_file: Sequence[str] | None = None,
        sensor: str | Sensor | None = None,
        nodata: float | None = None,
        fill: float = math.nan,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_scale: tuple[float, float] | None = None,
        cache: bool | None = None,
        seed: int = 0,
        on_error: str = 'raise',
        scale: float | None = None,
        offset: float | None = None,
        allow_missing_bands: bool = False,
        mask_band: str | None = None,
    ) -> None:
        """Initialize a new SceneDataModule instance.

        Args:
            root: Folder of the scenes.
            bands: Bands of the chips, in order and any spelling.
            size: Side of the chips in pixels. Smaller scenes are padded with missing
                pixels.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            paths: Patterns of the training scenes under *root*, see
                :func:`.find_scenes`. With ``'**/*.SAFE'``, products with a file per
                band.
            val_paths: Patterns of the validation scenes, which are not trained on. None
                to set *val_fraction* aside.
            test_paths: Patterns of the test scenes, which are neither trained on nor
                validated on.
            exclude: Patterns of files to leave out; one without a slash matches names
                in every folder.
            val_fraction: Share of the pixels to set aside for validation, in [0, 1).
                It is met within a tenth, or a warning says why not. Scenes that overlap
                on the ground are one place. Whole places are set aside where they add
                up to the share, else a block of the largest place, with a gap of one
                chip around it. Scenes without georeference count as different places:
                pass *val_paths* if several show the same ground.
            length: Number of training chips in an epoch; default as many as the scenes
                have room for, and at least one batch.
            val_length: Largest number of validation or test chips.
            bands_in_file: Names of the bands in the files, in order; None for the band
                descriptions in the files.
            sensor: The sensor that the names belong to; None for Sentinel-2, or that of
                a ``BandSet``.
            nodata: Value of missing pixels; None for the files' own.
            fill: Value of missing pixels after normalization. Tasks other than ours
                cannot take NaN.
            mean: Mean of each band in raw values; None to compute it.
            std: Standard deviation of each band in raw values; None to compute it.
            crop_scale: Range of the area of random crops that are resized to *size*, as
                a share of the chip. None for no crop: ``SIGMAETask`` crops by itself.
            cache: Whether to read every scene once and cut chips from memory, instead
                of reading a window for every chip. None to do so if all scenes together
                take less than 1 GiB.
            seed: Seed of the split, the order, the windows and the augmentation.
            on_error: What happens to a scene that cannot be read: ``'raise'`` stops;
                ``'skip'`` warns and leaves out the scene, or the chip if the scene
                fails in training. Another chip is drawn in its place from the seed of
                the sample, so a run still resumes exactly. :attr:`skipped` lists the
                files.
            scale: Reflectance per unit of the files' values; None for what each file
                says: its scale and offset tags, or the metadata of a Sentinel-2
                product.
            offset: Reflectance at 0: reflectance = value x scale + offset. None for
                what each file says.
            allow_missing_bands: Whether scenes may lack some of the bands, which become
                missing values.
            mask_band: ``'SCL'`` or ``'QA_PIXEL'``: a band of the files, or a file
                beside each, whose clouds and cloud shadows become missing values.

        Raises:
            ValueError: If an argument is out of range, or a band is unknown.
        """
        self.bands = BandSet(bands, sensor)
        if (mean is None) != (std is None):
            raise ValueError('mean, std: pass both, or none to have them computed.')
        for name, values in (('mean', mean), ('std', std)):
            if values is not None and len(values) != len(self.bands):
                raise ValueError(
                    f'{name}: {len(values)} values for the {len(self.bands)} bands '
                    f'{list(self.bands)}. Pass one per band.'
                )
        check_on_error(on_error)
        super().__init__(SceneChips, batch_size, num_workers, val_fraction)
        self.seed = seed
        self.root = os.fspath(root)
        self.size = size
        self.paths = paths
        self.val_paths = val_paths
        self.test_paths = test_paths
        self.exclude = exclude
        self.length = length
        self.val_length = val_length
        self.fill = fill
        self.crop_scale = crop_scale
        self.cache = cache
        self.on_error = on_error
        self.reading: ReadingOptions = {
            'bands_in_file': bands_in_file,
            'nodata': nodata,
            'scale': scale,
            'offset': offset,
            'allow_missing_bands': allow_missing_bands,
            'mask_band': mask_band,
        }
        self._mean_std = None if mean is None or std is None else (mean, std)
        self._skipped: set[str] = set()
        self._scenes: Split | None = None
        resumable(self, seed)

    @property
    def skipped(self) -> list[str]:
        """Files that could not be read, in this process and its loaders' workers."""
        chips = (self.train_dataset, self.val_dataset, self.test_dataset)
        failed = [part.skipped for part in (*chips, self.predict_dataset) if part]
        return sorted(self._skipped.union(*failed))

    def prepare_data(self) -> None:
        """Compute and store the statistics, once for all processes of a machine."""
        several = self.trainer is not None and self.trainer.world_size > 1
        if several and self._mean_std is None:
            skipped: set[str] = set()
            self._statistics(self._find(skipped)['train'], skipped)

    def setup(self, stage: str) -> None:
        """Set up the datasets of a stage."""
        if self._scenes is None:
            scenes = self._cached(self._find(self._skipped))
            if self._mean_std is None:
                statistics = self._statistics(scenes['train'], self._skipped)
                self._mean_std = statistics.mean, statistics.std
                left_out = statistics.skipped
                scenes['train'] = [s for s in scenes['train'] if s.path not in left_out]
            self._set_augmentations(*self._mean_std)
            mean = np.array(self._mean_std[0])[:, None]
            check_reflectance(mean, self.bands, f'scenes under {self.root}')
            self._scenes = scenes
            self._report(scenes)
        scenes = self._scenes
        if stage == 'fit':
            room = len(SceneChips(scenes['train'], self.bands, self.size))
            length = self.length or max(room, self.batch_size)
            self.train_dataset = self._chips(scenes['train'], True, length)
        if stage in ('fit', 'validate') and scenes['val']:
            self.val_dataset = self._chips(scenes['val'], False, self.val_length)
        if stage == 'test':
            if not scenes['test']:
                raise ValueError('test_paths: None, so there is nothing to test on.')
            self.test_dataset = self._chips(scenes['test'], False, self.val_length)
        if stage == 'predict':
            every = [scene for part in scenes.values() for scene in part]
            self.predict_dataset = self._chips(every, False, None)

    def on_after_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Normalize, augment and fill missing pixels."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if not math.isnan(self.fill):
            image = batch['image']
            batch['image'] = torch.where(image.isfinite(), image, self.fill)
        return batch

    def teardown(self, stage: str) -> None:
        """Warn of all files that were skipped."""
        super().teardown(stage)
        if skipped := self.skipped:
            warnings.warn(
                f'Skipped {len(skipped)} files that could not be read: '
                f'{", ".join(skipped)}.',
                stacklevel=2,
            )

    def find_splits(self) -> Split:
        """Find the scenes and split them, without reading any pixels.

        Returns:
            The scenes of ``'train'``, ``'val'`` and ``'test'``.
        """
        return self._find(self._skipped)

    def _find(self, skipped: set[str]) -> Split:
        """Find the scenes and split them."""
        scenes: Split = {'train': [], 'val': [], 'test': []}
        taken: set[str] = set()
        for split, paths in (
            ('test', self.test_paths),
            ('val', self.val_paths),
            ('train', self.paths),
        ):
            if paths is not None:
                matching = find_scenes(
                    self.root,
                    paths,
                    self.bands,
                    self.exclude,
                    self.on_error,
                    skipped,
                    **self.reading,
                )
                scenes[split] = [scene for scene in matching if scene.path not in taken]
                taken.update(scene.path for scene in matching)
        if self.val_paths is None and self.val_fraction:
            scenes['train'], scenes['val'] = split_scenes(
                scenes['train'], self.val_fraction, self.size, self.seed
            )
        return scenes

    def _statistics(
        self, scenes: list[RasterScene], skipped: set[str]
    ) -> SceneStatistics:
        """Statistics of the training scenes, stored beside the run."""
        file = None
        if self.trainer is not None:
            file = Path(self.trainer.default_root_dir) / 'scene_statistics.json'
        return stored_statistics(file, scenes, self.size, self.on_error, skipped)

    def _cached(self, split: Split) -> Split:
        """Read the scenes into memory, if asked to or small."""
        size = sum(scene.nbytes for scenes in split.values() for scene in scenes)
        if not (size < _CACHED_BYTES if self.cache is None else self.cache):
            return split
        cached: Split = {name: [] for name in split}
        for name, scenes in split.items():
            for scene in tqdm(scenes, f'Reading {name} scenes', disable=None, delay=2):
                with skip_on_error(scene.path, self.on_error, self._skipped):
                    cached[name].append(scene.cached())
            if scenes and not cached[name]:
                raise OSError(
                    f'None of the {len(scenes)} {name} scenes under {self.root} can be '
                    'read, see the warnings above.'
                )
        return cached

    def _report(self, split: Split) -> None:
        """Print the number of scenes."""
        counts = ', '.join(f'{len(split[name])} {name}' for name in split)
        every = [scene for scenes in split.values() for scene in scenes]
        paths = {scene.path for scene in every}
        notes = [f'Scenes under {self.root}: {counts}.']
        if len(paths) < len(every):
            notes.append(f'They are parts of {len(paths)} files.')
        small = sum(min(scene.height, scene.width) < self.size for scene in every)
        if small:
            notes.append(f'{small} are smaller than {self.size} px and padded.')
        unknown = len({scene.path for scene in every if scene.crs is None})
        if self.val_paths is None and split['val'] and unknown > 1:
            notes.append(
                f'{unknown} files have no georeference and count as different places: '
                'pass val_paths= if some show the same ground.'
            )
        rank_zero_info(' '.join(notes))

    def _chips(
        self, scenes: list[RasterScene], random: bool, length: int | None
    ) -> SceneChips:
        """Make a dataset."""
        return SceneChips(
            scenes, self.bands, self.size, random, length, on_error=self.on_error
        )

    def _set_augmentations(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Make the augmentations of training and evaluation."""
        self.mean = torch.tensor(mean, dtype=torch.float32)
        self.std = torch.tensor(std, dtype=torch.float32)
        self.train_aug, self.aug = augmentations(
            self.mean, self.std, self.size, self.crop_scale
        )


def augmentations(
    mean: Tensor,
    std: Tensor,
    size: int,
    crop_scale: tuple[float, float] | None,
) -> tuple[K.AugmentationSequential, K.AugmentationSequential]:
    """Make the augmentations of a datamodule.

    Args:
        mean: Mean of every band.
        std: Standard deviation of every band.
        size: Side of the images in pixels.
        crop_scale: Range of the area of random crops that are resized to *size*; None
            for no crop.

    Returns:
        Those of training, with flips and quarter turns, and those of evaluation.
    """
    normalize = K.Normalize(mean, std)
    crop = []
    if crop_scale is not None:
        crop.append(
            K.RandomResizedCrop(
                (size, size),
                scale=crop_scale,
                resample='bilinear',
                cropping_mode='resample',
            )
        )
    train = K.AugmentationSequential(
        normalize,
        *crop,
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        # -2 and 2 are the same turn, so each of the four turns is as likely.
        # Nearest neighbors, because kornia turns by interpolation.
        K.RandomRotation90(times=(-2, 2), p=1.0, resample='nearest'),
        data_keys=None,
        keepdim=True,
    )
    evaluation = K.AugmentationSequential(normalize, data_keys=None, keepdim=True)
    return train, evaluation
