# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A datamodule for packed chips, which are read at the speed of memory."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Sampler

from ..datasets.pack_index import PackIndex, choose_bands
from ..datasets.pack_splits import split_pack
from ..datasets.packed import PackedChips, decode
from ..datasets.paths import clean_path, is_remote
from ..datasets.remote import RemotePack
from ..datasets.resumable import resumable
from .base import ChipDataModule
from .scenes import augmentations

__all__ = ('PackedDataModule',)


class PackedDataModule(ChipDataModule):
    """LightningDataModule for a pack that ``torchgeo-sigmae pack`` has written.

    Batches are gathered from memory-mapped files at once, and go to the training device
    as they are stored. There they become float32, NaN where missing, and are normalized
    per band by mean and standard deviation of the pack. All processes of a machine
    share the files in memory. Files of a remote pack are copied to a cache while
    training goes on.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        root: str | Path = 'data',
        bands: Sequence[str] | None = None,
        size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        val_fraction: float = 0.1,
        length: int | None = None,
        val_length: int = 1024,
        source_weights: Mapping[str, float] | None = None,
        saliency_power: float = 0.0,
        crop_scale: tuple[float, float] | None = None,
        seed: int = 0,
        cache: str | Path | None = None,
        cache_size: float | None = None,
    ) -> None:
        """Initialize a new PackedDataModule instance.

        Args:
            root: Folder of the pack, or a URL that fsspec opens: ``s3://bucket/pack``,
                ``gs://bucket/pack``, ``https://host/pack``.
            bands: Bands of the images, in order and any spelling; None for all.
            size: Side of the images in pixels; None for whole chips. Larger chips are
                cropped, at random for training and centrally for evaluation.
            batch_size: Size of each mini-batch.
            num_workers: Number of workers for parallel data loading. One or two keep
                up with a GPU.
            val_fraction: Share of the chips to set aside for validation, in [0, 1),
                where the pack has no split of its own. Sources that overlap on the
                ground are one place. Whole places are set aside where they add up to
                the share, else a strip of the largest place, with a gap of one chip.
                Samples of datasets count as different places.
            length: Number of training images in an epoch; None for one of every chip,
                and at least one batch.
            val_length: Largest number of validation or test images.
            source_weights: How often chips of a source are seen, relative to 1, by
                patterns of the names of sources (``{'*L2A*': 2.0}``). The first pattern
                that matches counts. None to see every chip once in an epoch.
            saliency_power: Chips are seen in proportion to their saliency to this
                power, see :class:`.ChipSaliency`, and to *source_weights*. 0 for no
                preference.
            crop_scale: Range of the area of random crops that are resized to *size*, as
                a share of the image. None for no crop: ``SIGMAETask`` crops by itself.
            seed: Seed of the split, the order, the crops and the augmentation.
            cache: Folder for copies of remote packs, each in a folder of its own. None
                for ``packs`` in the folder of ``torch.hub``.
            cache_size: Largest size of the copied shards in GiB; None for all. If it is
                less than the pack, shards are shuffled, and chips within as many
                shards as fill a third of it, at most 16; and validation uses chips of
                so many shards only.

        Raises:
            ValueError: If an argument is out of range.
        """
        super().__init__(PackedChips, batch_size, num_workers, val_fraction)
        for pattern, weight in (source_weights or {}).items():
            if not 0 <= weight < float('inf'):
                raise ValueError(
                    f'source_weights: {weight} for {pattern!r} must be 0 or more, and '
                    'finite.'
                )
        if not 0 <= saliency_power < float('inf'):
            raise ValueError(
                f'saliency_power: {saliency_power} must be 0 or more, and finite.'
            )
        self.root = clean_path(root)
        self.bands: Sequence[str] | None = bands
        self.size = size
        self.length = length
        self.val_length = val_length
        self.source_weights = source_weights
        self.saliency_power = saliency_power
        self.crop_scale = crop_scale
        self.seed = seed
        self.cache = cache
        self.cache_size = cache_size
        self.index: PackIndex | None = None
        self._remote: RemotePack | None = None
        self._splits: dict[str, np.ndarray] = {}
        self._weights: np.ndarray | None = None
        resumable(self, seed)

    def setup(self, stage: str) -> None:
        """Set up the datasets of a stage."""
        if self.index is None:
            self._open()
        if stage == 'fit':
            self.train_dataset = self._chips(self._splits['train'], random=True)
        if stage in ('fit', 'validate') and len(self._splits['val']):
            self.val_dataset = self._chips(self._some('val'))
        if stage == 'test':
            if not len(self._splits['test']):
                raise ValueError(
                    f'root: the pack {self.root} has no test split. Pack a dataset or '
                    'datamodule that has one.'
                )
            self.test_dataset = self._chips(self._some('test'))
        if stage == 'predict':
            self.predict_dataset = self._chips(None)

    def _dataloader_factory(self, split: str) -> DataLoader[Any]:
        """Pinned batches; for training, in proportion to the weights of chips."""
        dataset = getattr(self, f'{split}_dataset')
        train = split == 'train'
        # At least one batch.
        length = self.length or max(len(dataset), self.batch_size)
        trainer = self.trainer
        cuda = trainer is not None and isinstance(trainer.accelerator, CUDAAccelerator)
        return DataLoader(
            dataset,
            self.batch_size,
            sampler=self._drawn(len(dataset), length) if train else None,
            num_workers=self.num_workers,
            pin_memory=cuda,
            drop_last=train,
            persistent_workers=self.num_workers > 0,
        )

    def on_before_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Leave the batch as it is stored: the task sees it on the device."""
        return batch

    def on_after_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Decode, let the task mark what is missing, normalize and augment."""
        batch['image'] = decode(batch['image'])
        if self.trainer is not None:
            module = self.trainer.lightning_module
            batch = module.on_before_batch_transfer(batch, dataloader_idx)
        return dict(super().on_after_batch_transfer(batch, dataloader_idx))

    def _open(self) -> None:
        """Read the index, choose bands and split the chips."""
        if is_remote(self.root):
            self._remote = RemotePack(self.root, self.cache, self.cache_size)
            index = self._remote.index
            rank_zero_info(f'Copies of {self.root} are in {self._remote.folder}.')
        else:
            index = PackIndex.read(self.root)
        self.bands, channels = choose_bands(
            index.bands, self.bands, f'the pack {self.root}'
        )
        mean = torch.tensor([index.mean[i] for i in channels])
        std = torch.tensor([index.std[i] for i in channels])
        if not (std > 0).all():
            flat = [band for band, s in zip(self.bands, std, strict=True) if not s > 0]
            raise ValueError(
                f'bands: {", ".join(flat)} has no values in {self.root}, or the same '
                'everywhere, and cannot be normalized. Leave it out of bands=.'
            )
        self.mean, self.std = mean, std
        self.train_aug, self.aug = augmentations(
            mean, std, self.size or index.shape[1], self.crop_scale
        )
        every = PackedChips(
            self.root, self.bands, self.size, index=index, remote=self._remote
        )
        source, window = every.column('source'), every.column('window')
        self._splits = split_pack(index, source, window, self.val_fraction, self.seed)
        counts = {name: len(chips) for name, chips in self._splits.items()}
        self._weights = self._draw_weights(index, every)
        self.index = index
        rank_zero_info(
            f'Chips of {self.root}: '
            f'{", ".join(f"{count} {name}" for name, count in counts.items())}.'
        )

    def _draw_weights(self, index: PackIndex, every: PackedChips) -> np.ndarray | None:
        """How often every training chip is seen; None for all alike."""
        if self.source_weights is None and not self.saliency_power:
            return None
        chips = self._splits['train']
        weights = np.ones(len(chips))
        if self.source_weights is not None:
            of_source = np.array([self._weight(s['name']) for s in index.sources])
            weights *= of_source[every.column('source')[chips]]
            if not weights.any():
                raise ValueError(
                    f'source_weights: {dict(self.source_weights)} leaves no chip to '
                    f'train on. Sources are, for example, {index.sources[0]["name"]!r}.'
                )
        if self.saliency_power:
            if 'saliency' not in index.columns:
                raise ValueError(
                    f'saliency_power: the pack {self.root} has no saliency. Pass '
                    'saliency_power=0, or pack the data again with --saliency.'
                )
            saliency = every.column('saliency')[chips].astype(np.float64)
            weights *= saliency**self.saliency_power
            if not weights.any():
                raise ValueError(
                    f'saliency_power: {self.saliency_power}, but no training chip of '
                    f'{self.root} has any saliency. Pass saliency_power=0.'
                )
        return weights

    def _weight(self, name: str) -> float:
        """How often the chips of a source are seen."""
        assert self.source_weights is not None
        matches = (w for p, w in self.source_weights.items() if fnmatch(name, p))
        return next(matches, 1.0)

    def _some(self, split: str) -> np.ndarray:
        """The chips of an evaluation, spread evenly."""
        chips = self._splits[split]
        if split == 'val' and self._remote is not None and self._remote.mixed:
            assert self.index is not None
            shards = self.index.shard_of(chips)
            few = _spread(np.unique(shards), self._remote.mixed)
            self._remote.pinned = frozenset(self.index.shards[i].file for i in few)
            chips = chips[np.isin(shards, few)]
        return _spread(chips, self.val_length)

    def _chips(self, chips: np.ndarray | None, random: bool = False) -> PackedChips:
        """Make a dataset."""
        return PackedChips(
            self.root, self.bands, self.size, random, chips, True, self.index,
            self._remote,
        )  # fmt: skip

    def _drawn(self, count: int, length: int) -> '_Drawn':
        """The order of training."""
        if self._remote is None or self._remote.mixed is None:
            return _Drawn(count, length, self._weights)
        assert self.index is not None
        shards = self.index.shard_of(self._splits['train'])
        return _Drawn(count, length, self._weights, shards, self._remote.mixed)


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, spread evenly."""
    count = min(most, len(values))
    return values[np.arange(count) * len(values) // max(count, 1)]


class _Drawn(Sampler[int]):
    """Random samples of torch's global generator.

    Without weights none is seen again before all others are. torch's samplers make
    lists of Python numbers, and stop at 2 ** 24 weights.

    Where only a few shards are at hand, shards are shuffled, and then the samples of
    every *mixed* shards (*shards* has the number of each sample's shard).
    """

    def __init__(
        self,
        count: int,
        length: int,
        weights: np.ndarray | None,
        shards: np.ndarray | None = None,
        mixed: int | None = None,
    ) -> None:
        self.mixed = mixed
        self._count = count
        self._length = length
        self._sums = None if weights is None else np.cumsum(weights)
        self._shards = None
        if shards is not None:
            self._shards = np.unique(shards, return_inverse=True)[1].astype(np.int32)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        rounds = range(-(-self._length // self._count))
        if self._shards is not None:
            order = torch.cat([self._near(self._draw(self._count)) for _ in rounds])
        elif self._sums is None:
            order = torch.cat([self._draw(self._count) for _ in rounds])
        else:
            order = self._draw(self._length)
        for part in order[: self._length].split(2**16):
            yield from part.tolist()

    def _draw(self, count: int) -> torch.Tensor:
        """Draw samples of all shards."""
        if self._sums is None:
            return torch.randperm(count)
        drawn = torch.rand(count, dtype=torch.float64).numpy()
        places = np.searchsorted(self._sums, drawn * self._sums[-1], 'right')
        return torch.from_numpy(places)

    def _near(self, order: torch.Tensor) -> torch.Tensor:
        """Put the samples of the same few shards together."""
        assert self._shards is not None
        assert self.mixed is not None
        count = int(self._shards.max()) + 1
        groups = -(-count // self.mixed)
        # Groups of equal size, but for one shard.
        group = torch.randperm(count) * groups // count
        return order[group[self._shards[order]].argsort(stable=True)]
