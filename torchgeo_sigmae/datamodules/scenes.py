# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A datamodule for a folder of one's own GeoTIFF scenes."""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader
from torchgeo.datamodules import NonGeoDataModule
from tqdm import tqdm

from .._files import write_text
from ..bands import SENTINEL2_TEN_BANDS, get_sensor, normalize_bands
from ..datasets.chips import SceneChips
from ..datasets.resumable import resumable
from ..datasets.scene_statistics import band_statistics, read_statistics
from ..datasets.scenes import Scene, find_scenes, group_overlapping
from ..datasets.skipping import Skipped

__all__ = ('SceneDataModule',)

#: Scenes that take less than so many bytes are held in memory unless asked otherwise.
_HELD = 2**30


class SceneDataModule(NonGeoDataModule):
    """LightningDataModule for a folder of GeoTIFF scenes of any size.

    Chips are cut by windowed reading and normalised per band. Mean and standard
    deviation are those of the training scenes; they are computed once and kept in
    ``scene_statistics.json`` in the trainer's ``default_root_dir``. Missing pixels are
    NaN.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        root: str | Path = 'data',
        bands: Sequence[str] = SENTINEL2_TEN_BANDS,
        size: int = 96,
        batch_size: int = 32,
        num_workers: int = 0,
        paths: str | Sequence[str] = '**/*.tif',
        val_paths: str | Sequence[str] | None = None,
        test_paths: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] = (),
        val_fraction: float = 0.1,
        length: int | None = None,
        val_length: int = 1024,
        file_bands: Sequence[str] | None = None,
        sensor: str = 'sentinel2',
        nodata: float | None = None,
        fill: float = math.nan,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: tuple[float, float] | None = None,
        in_memory: bool | None = None,
        seed: int = 0,
        on_error: str = 'raise',
    ) -> None:
        """Initialize a new SceneDataModule instance.

        Args:
            root: Folder of the scenes.
            bands: Bands of the chips, in order and any spelling.
            size: Side of the chips in pixels. Smaller scenes are padded, and the
                padding is missing data.
            batch_size: Size of each mini-batch.
            num_workers: Number of workers for parallel data loading.
            paths: Patterns of the training scenes under *root*, as in :mod:`glob`;
                ``**`` stands for any number of folders.
            val_paths: Patterns of the validation scenes; they are not trained on. None
                to set *val_fraction* aside.
            test_paths: Patterns of the test scenes; they are not trained or validated
                on.
            exclude: Patterns of files to leave out.
            val_fraction: Share of the area to set aside for validation, in [0, 1), in
                whole scenes; scenes that overlap on the ground are not parted. A guess
                from the georeference: without one, name *val_paths* where several
                files show the same place.
            length: Number of training chips in an epoch; default as many as the scenes
                have room for, and at least one batch.
            val_length: Number of validation or test chips at most.
            file_bands: Names of the bands in the files, in order; None to take the
                descriptions in the files.
            sensor: The sensor the names belong to.
            nodata: Value of missing pixels; None for what the files say.
            fill: What missing pixels hold after normalisation. Tasks other than ours
                cannot take NaN.
            mean: Mean of each band in raw values; None to compute it.
            std: Standard deviation of each band in raw values; None to compute it.
            scale: Range of the area of random crops that are resized to *size*, as a
                share of the chip. None for no crop: ``SIGMAETask`` makes its own.
            in_memory: Whether to read every scene once and cut chips from memory, not
                to decode a window for every chip. None to do so where all scenes
                together take less than 1 GiB.
            seed: Seed of the split, the order, the windows and the augmentation.
            on_error: What happens to a scene that cannot be read: ``'raise'`` stops,
                ``'skip'`` leaves out the scene, or the chip if that happens in
                training. Another is drawn in its place from the seed of the sample, so
                that a run still resumes exactly. Every file is warned of once, and
                counted in :attr:`skipped`.

        Raises:
            ValueError: If an argument is out of range, or a band is unknown.
        """
        self.sensor = get_sensor(sensor)
        self.bands = normalize_bands(bands, self.sensor)
        if not 0 <= val_fraction < 1:
            raise ValueError(
                f'val_fraction: {val_fraction} must be in [0, 1): 0 for no validation.'
            )
        if (mean is None) != (std is None):
            raise ValueError('mean, std: pass both, or none to have them computed.')
        for name, given in (('mean', mean), ('std', std)):
            if given is not None and len(given) != len(self.bands):
                raise ValueError(
                    f'{name}: {len(given)} values for the {len(self.bands)} bands '
                    f'{list(self.bands)}. Pass one a band.'
                )
        super().__init__(SceneChips, batch_size, num_workers)
        self.seed = seed
        self.root = os.fspath(root)
        self.size = size
        self.paths = paths
        self.val_paths = val_paths
        self.test_paths = test_paths
        self.exclude = exclude
        self.val_fraction = val_fraction
        self.length = length
        self.val_length = val_length
        self.file_bands = file_bands
        self.nodata = nodata
        self.fill = fill
        self.scale = scale
        self.in_memory = in_memory
        self._given = None if mean is None or std is None else (list(mean), list(std))
        self._skipped = Skipped(on_error)
        self._split: dict[str, list[Scene]] | None = None
        resumable(self, seed)

    @property
    def skipped(self) -> dict[str, int]:
        """Files this process could not read, and how often it left them out."""
        return dict(self._skipped.counts)

    # ----------------------------------------------------------------------- scenes

    def prepare_data(self) -> None:
        """Find the scenes and compute the statistics, once per machine."""
        self._normalize()

    def setup(self, stage: str) -> None:
        """Set up datasets.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            FileNotFoundError: If there is no scene.
            OSError: If a scene cannot be read; the message names it.
            ValueError: If bands are missing, no scene is as large as a chip, a scene
                holds no data, or no scene is left for training.
        """
        self._normalize()
        scenes = self._scenes()
        if stage == 'fit':
            chips = SceneChips(scenes['train'], self.bands, self.size)
            length = self.length or max(len(chips), self.batch_size)
            self.train_dataset = self._chips('train', True, length)
        if stage in ('fit', 'validate') and scenes['val']:
            self.val_dataset = self._chips('val', False, self.val_length)
        if stage == 'test':
            if not scenes['test']:
                raise ValueError('test_paths: None, so there is nothing to test on.')
            self.test_dataset = self._chips('test', False, self.val_length)
        if stage == 'predict':
            self.predict_dataset = self._chips('all', False, None)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Implement one or more PyTorch DataLoaders for validation.

        Returns:
            The loader, or an empty list where nothing was set aside.
        """
        if self.val_dataset is None:
            return []
        loader: DataLoader[Any] = super().val_dataloader()
        return loader

    def _chips(self, split: str, random: bool, length: int | None) -> SceneChips:
        """Make the dataset of a split."""
        scenes = self._scenes()
        every = [scene for part in scenes.values() for scene in part]
        chosen = every if split == 'all' else scenes[split]
        return SceneChips(
            chosen, self.bands, self.size, random, length, sensor=self.sensor,
            on_error=self._skipped.on_error,
        )  # fmt: skip

    def _scenes(self) -> dict[str, list[Scene]]:
        """The scenes of every split."""
        if self._split is None:
            self._split = self._hold(self._find())
            count = {name: len(scenes) for name, scenes in self._split.items()}
            small = sum(
                min(scene.height, scene.width) < self.size
                for scenes in self._split.values()
                for scene in scenes
            )
            rank_zero_info(
                f'{count["train"]} training, {count["val"]} validation and '
                f'{count["test"]} test scenes under {self.root}.'
                + (
                    f' {small} are smaller than {self.size} px and padded.'
                    * (small > 0)
                )
            )
        return self._split

    def _hold(self, split: dict[str, list[Scene]]) -> dict[str, list[Scene]]:
        """Bring the scenes into memory, if wanted or small."""
        size = sum(scene.nbytes for scenes in split.values() for scene in scenes)
        if not (size < _HELD if self.in_memory is None else self.in_memory):
            return split
        count = sum(map(len, split.values()))
        with tqdm(total=count, desc='Reading scenes', disable=None, delay=2) as bar:
            held: dict[str, list[Scene]] = {name: [] for name in split}
            for name, scenes in split.items():
                for scene in scenes:
                    with self._skipped.trying(scene.path):
                        held[name].append(scene.hold())
                    bar.update()
                if scenes and not held[name]:
                    raise OSError(
                        f'None of the {len(scenes)} {name} scenes under {self.root} '
                        'can be read, see the warnings above.'
                    )
        return held

    def _find(self) -> dict[str, list[Scene]]:
        """Look for the scenes and split them."""
        found: dict[str, list[Scene]] = {'train': [], 'val': [], 'test': []}
        taken = [self.exclude] if isinstance(self.exclude, str) else list(self.exclude)
        for split, paths in (
            ('test', self.test_paths),
            ('val', self.val_paths),
            ('train', self.paths),
        ):
            if paths is not None:
                found[split] = find_scenes(
                    self.root,
                    paths,
                    self.bands,
                    self.file_bands,
                    self.sensor,
                    self.nodata,
                    taken,
                    self._skipped,
                )
                taken += [paths] if isinstance(paths, str) else list(paths)
        if self.val_paths is None and self.val_fraction:
            found['train'], found['val'] = self._part(found['train'])
        return found

    def _part(self, scenes: list[Scene]) -> tuple[list[Scene], list[Scene]]:
        """Set whole scenes aside for validation."""
        groups = group_overlapping(scenes)
        if len(groups) < 2:
            raise ValueError(
                f'val_fraction: {self.val_fraction}, but the {len(scenes)} scenes '
                f'under {self.root} show one place, which cannot be split. Pass '
                'val_fraction=0, or val_paths= to choose.'
            )
        wanted = self.val_fraction * sum(scene.area for scene in scenes)
        aside: set[int] = set()
        order = np.random.default_rng(self.seed).permutation(len(groups))
        for number in order[:-1]:
            aside |= set(groups[number])
            if sum(scenes[i].area for i in aside) >= wanted:
                break
        return (
            [scene for i, scene in enumerate(scenes) if i not in aside],
            [scene for i, scene in enumerate(scenes) if i in aside],
        )

    # ------------------------------------------------------------------- statistics

    def _normalize(self) -> None:
        """Make the augmentations, from given, kept or new statistics."""
        mean, std = self._given or self._statistics()
        self._given = mean, std
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        normalize = K.Normalize(self.mean, self.std)
        size = (self.size, self.size)
        crop = (
            []
            if self.scale is None
            else [
                K.RandomResizedCrop(
                    size,
                    scale=self.scale,
                    resample='bilinear',
                    cropping_mode='resample',
                )
            ]
        )
        self.train_aug = K.AugmentationSequential(
            normalize,
            *crop,
            K.RandomHorizontalFlip(p=0.5),
            K.RandomVerticalFlip(p=0.5),
            # Two half as likely turns by 180 degrees make all turns as likely; nearest
            # neighbours, because kornia turns by interpolation.
            K.RandomRotation90(times=(-2, 2), p=1.0, resample='nearest'),
            data_keys=None,
            keepdim=True,
        )
        self.aug = K.AugmentationSequential(normalize, data_keys=None, keepdim=True)

    def on_after_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Normalise and augment; fill missing pixels.

        Args:
            batch: The output of your DataLoader.
            dataloader_idx: Index of the current dataloader.

        Returns:
            The batch.
        """
        # Counted here and not where it happened, which may be in a worker.
        for text in batch.pop('skipped', ()):
            for path, why in json.loads(text):
                self._skipped.add(path, why)
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if not math.isnan(self.fill):
            image = batch['image']
            batch['image'] = torch.where(image.isfinite(), image, self.fill)
        return batch

    def teardown(self, stage: str) -> None:
        """Tell what was skipped.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Warns:
            UserWarning: If there was anything.
        """
        super().teardown(stage)
        if report := self._skipped.report():
            warnings.warn(report, stacklevel=2)

    def _statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the training scenes, kept beside the run."""
        scenes = self._scenes()['train']
        key = self._fingerprint(scenes)
        kept = None
        if self.trainer is not None:
            kept = Path(self.trainer.default_root_dir) / 'scene_statistics.json'
            if kept.exists():
                known = read_statistics(kept, key, len(self.bands))
                skips = self._skipped.on_error == 'skip'
                if known is not None and (skips or not known[2]):
                    mean, std, left_out = known
                    self._leave_out(left_out)
                    for name in left_out:
                        path = os.path.join(self.root, name)
                        self._skipped.add(path, f'{path}, as in {kept}.')
                    return mean, std
                rank_zero_info(
                    f'{kept} is for other scenes, bands or chips, or damaged: computed '
                    'anew.'
                )
        mean, std, pixels, left_out = band_statistics(
            scenes, self.bands, self.size, self._skipped
        )
        left_out = [os.path.relpath(path, self.root) for path in left_out]
        self._leave_out(left_out)
        if kept is not None:
            content = {
                'bands': list(self.bands),
                'mean': mean,
                'std': std,
                'pixels': pixels,
                'scenes': len(scenes) - len(left_out),
                'left_out': left_out,
                'fingerprint': key,
            }
            text = json.dumps(content, indent=2) + '\n'
            try:
                write_text(kept, text, 'default_root_dir')
            except OSError as error:
                rank_zero_warn(f'The statistics could not be kept: {error}')
        return mean, std

    def _leave_out(self, names: Sequence[str]) -> None:
        """Do not train on scenes without data; a resumed run has the same."""
        split = self._scenes()
        split['train'] = [
            scene
            for scene in split['train']
            if os.path.relpath(scene.path, self.root) not in names
        ]

    def _fingerprint(self, scenes: Sequence[Scene]) -> str:
        """What the statistics depend on."""
        files = []
        for scene in scenes:
            status = os.stat(scene.path)
            name = os.path.relpath(scene.path, self.root)
            files.append(
                (name, status.st_size, status.st_mtime_ns, scene.channels, scene.nodata)
            )
        text = json.dumps([self.bands, self.size, files])
        return hashlib.sha256(text.encode()).hexdigest()
