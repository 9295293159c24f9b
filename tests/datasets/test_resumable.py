# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The order of the training data and everything random in it."""

import copy
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    WeightedRandomSampler,
)
from torchgeo.datamodules import EuroSATDataModule

from helpers.training import quiet_trainer
from torchgeo_sigmae import resumable
from torchgeo_sigmae.datasets import is_resumable


class Numbers(Dataset[dict[str, torch.Tensor]]):
    """Samples that tell their index and what they drew from every generator."""

    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]
        return {'index': torch.tensor(index), 'drawn': torch.tensor(drawn)}


class Module(LightningDataModule):
    def __init__(self, dataset: Dataset[Any] | None = None, **kwargs: Any) -> None:
        super().__init__()
        self.dataset = dataset or Numbers()
        self.kwargs = {'batch_size': 4, 'shuffle': True, **kwargs}

    def train_dataloader(self) -> Any:
        return DataLoader(self.dataset, **self.kwargs)

    def plot(self) -> str:
        return 'a plot'


class Watch(LightningModule):
    """Keeps what it sees, and what a step draws."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.sample: dict[tuple[int, int], list[float]] = {}
        self.step: list[float] = []

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen.append(batch['index'].tolist())
        for index, drawn in zip(batch['index'].tolist(), batch['drawn'], strict=True):
            self.sample[self.current_epoch, index] = drawn.tolist()
        self.step.append(float(torch.rand(())))
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def run(datamodule: Any, global_seed: int = 0, **kwargs: Any) -> Watch:
    torch.manual_seed(global_seed)
    np.random.seed(global_seed)
    random.seed(global_seed)
    watch = Watch()
    quiet_trainer(max_epochs=2, **kwargs).fit(watch, datamodule)
    return watch


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def test_it_is_still_the_same_datamodule() -> None:
    datamodule = Module()
    assert not is_resumable(datamodule)
    assert resumable(datamodule, seed=4) is datamodule
    assert is_resumable(datamodule)
    assert type(datamodule) is Module
    assert datamodule.plot() == 'a plot'
    once = datamodule.train_dataloader
    resumable(datamodule, seed=5)
    assert datamodule.train_dataloader is once
    assert datamodule.resumable_seed == 5


def test_it_can_be_copied_and_pickled() -> None:
    datamodule = resumable(EuroSATDataModule(root='nowhere'), 3)
    for other in (copy.deepcopy(datamodule), pickle.loads(pickle.dumps(datamodule))):
        assert is_resumable(other)
        assert other.train_dataloader.args[0] is other
        assert other.train_dataloader.args[1].__self__ is other


def test_loaders_of_ones_own() -> None:
    datamodule = LightningDataModule.from_datasets(Numbers(), batch_size=4)
    watch = run(resumable(datamodule))
    assert sorted(flat(watch.seen[:5])) == list(range(20))
    other = LightningDataModule.from_datasets(Numbers(), batch_size=4)
    assert run(resumable(other), 1).seen == watch.seen


@pytest.mark.parametrize('workers', [0, 2])
def test_nothing_depends_on_the_global_generators(workers: int) -> None:
    one = run(resumable(Module()), global_seed=1)
    other = run(resumable(Module(num_workers=workers)), global_seed=2)
    assert one.seen == other.seen
    assert one.sample == other.sample
    assert one.step == other.step
    # And it is the wrapper that does it.
    assert run(Module(), global_seed=1).seen != run(Module(), global_seed=2).seen


def test_everything_is_drawn_anew() -> None:
    watch = run(resumable(Module()))
    epochs = [flat(watch.seen[:5]), flat(watch.seen[5:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2
    assert epochs[0] != epochs[1]
    drawn = [value for values in watch.sample.values() for value in values]
    assert len(set(drawn)) == 20 * 2 * 3
    assert len(set(watch.step)) == 10
    assert run(resumable(Module(), seed=1)).seen != watch.seen


def test_the_global_generators_are_left_alone_by_samples() -> None:
    datamodule = resumable(Module())
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    next(iter(datamodule.train_dataloader()))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(('limit', 'batches'), [(3, 3), (0.5, 2), (99, 5), (1.0, 5)])
def test_limits(limit: float, batches: int) -> None:
    watch = run(resumable(Module()), limit_train_batches=limit)
    assert len(watch.seen) == 2 * batches
    assert watch.seen[0] != watch.seen[batches]


def test_the_rest_is_kept_or_dropped_as_before() -> None:
    kept = run(resumable(Module(Numbers(10))))
    assert [len(batch) for batch in kept.seen] == [4, 4, 2] * 2
    dropped = run(resumable(Module(Numbers(10), drop_last=True)))
    assert [len(batch) for batch in dropped.seen] == [4, 4] * 2


def test_other_samplers_are_kept() -> None:
    weights = [0.0] * 10 + [1.0] * 10
    sampler = WeightedRandomSampler(weights, 20)
    watch = run(resumable(Module(sampler=sampler, shuffle=False)), 1)
    assert min(flat(watch.seen)) == 10
    again = run(resumable(Module(sampler=sampler, shuffle=False)), 2)
    assert again.seen == watch.seen
    ordered = run(resumable(Module(shuffle=False)))
    assert flat(ordered.seen) == list(range(20)) * 2


def test_loader_options_are_kept() -> None:
    datamodule = Module(num_workers=1, persistent_workers=True, prefetch_factor=3)
    loader = resumable(datamodule).train_dataloader()
    assert isinstance(loader.sampler, DistributedSampler)
    assert (loader.num_workers, loader.persistent_workers) == (1, True)
    assert loader.prefetch_factor == 3
    assert len(loader) == 5
    assert len(loader.dataset) == 20


def test_processes_share_the_samples_out() -> None:
    """What two processes see in a step is what one sees with twice the batch."""
    alone = run(resumable(Module(batch_size=8, drop_last=True)))
    seen = []
    for rank in range(2):
        datamodule = resumable(Module(drop_last=True))
        datamodule.trainer = trainer = Trainer(logger=False, accelerator='cpu')
        trainer.strategy.__class__ = type(
            'Two',
            (type(trainer.strategy),),
            {'global_rank': rank},
        )
        trainer.__class__ = type(
            'TwoProcesses', (Trainer,), {'world_size': 2, 'global_rank': rank}
        )
        seen.append(
            [batch['index'].tolist() for batch in datamodule.train_dataloader()]
        )
    for one, other, both in zip(*seen, alone.seen, strict=False):
        assert sorted(one + other) == sorted(both)


def test_what_cannot_be_resumed_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    class Several(Module):
        def train_dataloader(self) -> Any:
            return [super().train_dataloader()] * 2

    with pytest.raises(TypeError, match=r'datamodule: expected .* got DataLoader'):
        resumable(DataLoader(Numbers()))
    with pytest.raises(
        TypeError, match=r'Several\.train_dataloader\(\) returns a list'
    ):
        resumable(Several()).train_dataloader()
    loader = torch.utils.data.BatchSampler(range(20), 4, False)
    own = Module(batch_sampler=loader, batch_size=1, shuffle=False)
    with pytest.raises(TypeError, match='batch sampler of its own'):
        resumable(own).train_dataloader()
    with pytest.raises(
        TypeError, match=r'Module streams .* from a Stream, .* cannot be made resumable'
    ):
        resumable(Module(Stream(), shuffle=False)).train_dataloader()
