# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Training data whose order and randomness depend on the position in the run alone.

Lightning restarts the data of an epoch when a run is resumed, and TorchGeo shuffles and
augments from the global generator. With a resumable datamodule the order of the samples
is a function of (seed, epoch), the randomness of a sample of (seed, epoch, index), and
that of a step (augmentation, dropout) of (seed, step, process): an interrupted run
continues with the very next batch, as if nothing had happened, whatever the number of
workers.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
)

from .._methods import replace_method
from .._random import seed_from, seeded

__all__ = ('is_resumable', 'resumable')

_DataModule = TypeVar('_DataModule', bound=LightningDataModule)

#: First element of every seed key, so that no two uses share randomness.
_ORDER, _SAMPLE, _STEP = range(3, 6)


def resumable(datamodule: _DataModule, seed: int = 0) -> _DataModule:
    """Make the training data of a datamodule resumable.

    Args:
        datamodule: A datamodule whose training loader draws from a map-style dataset:
            any ``NonGeoDataModule`` of TorchGeo, for example. Its loader is refused
            when it is made, not here, if it cannot be made resumable: a stream, for
            example.
        seed: Seed of the order and of everything random.

    Returns:
        The same object, still of its class. A second call changes the seed only.
    """
    if not isinstance(datamodule, LightningDataModule):
        raise TypeError(
            f'datamodule: expected a LightningDataModule, got '
            f'{type(datamodule).__name__}. Wrap loaders of your own in '
            'LightningDataModule.from_datasets(...).'
        )
    replace_method(datamodule, 'train_dataloader', _train_dataloader)
    replace_method(datamodule, 'on_after_batch_transfer', _on_after_batch_transfer)
    vars(datamodule)['resumable_seed'] = seed
    return datamodule


def is_resumable(datamodule: object) -> bool:
    """Return whether :func:`.resumable` was called on a datamodule."""
    return hasattr(datamodule, 'resumable_seed')


def _train_dataloader(
    datamodule: Any, original: Callable[[], DataLoader[Any]]
) -> DataLoader[Any]:
    """The datamodule's own training loader, in an order of ours."""
    return _ResumableLoader(original(), datamodule)


def _on_after_batch_transfer(
    datamodule: Any,
    original: Callable[[Any, int], Any],
    batch: Any,
    dataloader_idx: int,
) -> Any:
    """Seed the randomness of a training step, then augment as ever."""
    trainer = datamodule.trainer
    if trainer is not None and trainer.training:
        key = (datamodule.resumable_seed, batches_begun(trainer), trainer.global_rank)
        torch.manual_seed(seed_from(_STEP, *key))
    return original(batch, dataloader_idx)


def batches_begun(trainer: Trainer) -> int:
    """Count the training batches a run has begun, over all epochs."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)


def samples_of(trainer: Trainer, batch: int) -> list[int]:
    """Indices of the samples of a batch, counted over all epochs.

    Empty if the data are not resumable.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, _ResumableLoader):
        return []
    return loader.samples_of(max(batch, 0))


class _ResumableLoader(DataLoader[Any]):
    """A DataLoader that continues where its trainer stands."""

    def __init__(self, loader: Any, owner: Any) -> None:
        name = type(owner).__name__
        what = type(getattr(loader, 'dataset', loader))
        if isinstance(loader, DataLoader) and issubclass(what, IterableDataset):
            raise TypeError(
                f'datamodule: {name} streams its training data from a {what.__name__}, '
                'an IterableDataset, which cannot be made resumable: a stream has no '
                'sample indices. Train without resumable(): a resumed run goes on with '
                'its weights, schedules and masks, and its stream begins anew.'
            )
        if not isinstance(loader, DataLoader):
            raise TypeError(
                f'datamodule: {name}.train_dataloader() returns a {what.__name__}, '
                'which cannot be made resumable. Return one DataLoader of a map-style '
                'dataset.'
            )
        if loader.batch_size is None:
            raise TypeError(
                f'datamodule: {name} draws its training data with a batch sampler of '
                'its own, which cannot be made resumable. Give the DataLoader a '
                'batch_size and a sampler, or do without resumable().'
            )
        sampler = _PositionedSampler(loader, owner)
        super().__init__(
            _SeededSamples(loader.dataset, owner.resumable_seed),
            batch_size=loader.batch_size,
            sampler=sampler,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            drop_last=loader.drop_last,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            # Seeds the workers, instead of the global one.
            generator=torch.Generator(),
        )
        self._sampler = sampler

    def __iter__(self) -> Any:
        # At the first batch, not before: Lightning makes the iterator early, before it
        # has restored the progress of the run, and workers would set off at once.
        yield from super().__iter__()

    def samples_of(self, number: int) -> list[int]:
        """The samples of a batch, counted over all epochs."""
        epoch, batch = divmod(number, self._sampler.batches_per_epoch)
        first = batch * self._sampler.batch_size
        samples = self._sampler.order(epoch)[first : first + self._sampler.batch_size]
        return list(map(int, samples))

    # Lightning takes a loader with these two for resumable. Where it stands is known
    # from the trainer's own progress, so that batches that workers fetched ahead do not
    # count.

    def state_dict(self) -> dict[str, Any]:
        """Describe the order, to recognise it when the run is resumed."""
        order = {
            'seed': self._sampler.owner.resumable_seed,
            'samples': len(self._sampler),
            'batch_size': self.batch_size,
            'batches': self._sampler.batches_per_epoch,
            'processes': self._sampler.num_replicas,
        }
        mixed = getattr(self._sampler.source, 'mixed', None)
        return order if mixed is None else order | {'mixed shards': mixed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load; ResumableCheckpoint compares."""


class _PositionedSampler(DistributedSampler[tuple[int, int]]):
    """Yields (epoch, index) of the samples a process has still to see in an epoch.

    A DistributedSampler, so that Lightning leaves it alone.
    """

    def __init__(self, loader: DataLoader[Any], owner: Any) -> None:
        trainer = owner.trainer
        self.owner = owner
        self.source = loader.sampler
        self.samples = loader.dataset
        self.batch_size = cast(int, loader.batch_size)
        super().__init__(
            cast(Dataset[Any], range(len(cast(Any, loader.sampler)))),
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            # No sample twice in an epoch.
            drop_last=True,
        )
        if not loader.drop_last and self.num_replicas == 1:
            self.num_samples = len(cast(Any, loader.sampler))
        batches = self.num_samples / self.batch_size
        count = int(batches) if loader.drop_last else -int(-batches // 1)
        limit = trainer.limit_train_batches if trainer else 1.0
        share = int(count * limit) if isinstance(limit, float) else min(limit, count)
        self.batches_per_epoch = max(share, 1)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        trainer = self.owner.trainer
        epoch, batch = self.epoch, 0
        if trainer is not None and trainer.state.fn == 'fit':
            epoch, batch = divmod(batches_begun(trainer), self.batches_per_epoch)
        order = self.order(epoch)[batch * self.batch_size :]
        # A dataset that fetches files wants to know which come next.
        follow = getattr(self.samples, 'follow', None)
        following = (
            order if follow is None else follow(order, lambda: self.order(epoch + 1))
        )
        for index in following:
            yield epoch, int(index)

    def order(self, epoch: int) -> np.ndarray:
        """The samples of this process in an epoch."""
        with seeded(_ORDER, self.owner.resumable_seed, epoch):
            # A list of Python numbers is five times as large.
            order = np.fromiter(self.source, np.int64)
        return order[self.rank :: self.num_replicas][: self.num_samples]


class _SeededSamples(Dataset[Any]):
    """A dataset whose randomness depends on (seed, epoch, index) alone.

    A batch is of one epoch.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        with seeded(_SAMPLE, self.seed, epoch, index):
            return self.dataset[index]

    def __getitems__(self, keys: list[tuple[int, int]]) -> Any:
        # A dataset that gathers batches takes a seed instead of generators.
        gather = getattr(self.dataset, 'gather', None)
        if gather is None:
            return [self[key] for key in keys]
        seed = seed_from(_SAMPLE, self.seed, keys[0][0])
        return gather([index for _, index in keys], seed)

    def __len__(self) -> int:
        return len(cast(Any, self.dataset))
