# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Checkpoints that are written whole, looked up and checked before use."""

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.training import SMALL, quiet_trainer
from torchgeo_sigmae import (
    ResumableCheckpoint,
    SIGMAETask,
    SyntheticSentinel2DataModule,
    resumable,
)
from torchgeo_sigmae.callbacks import newest_checkpoint
from torchgeo_sigmae.callbacks.checkpoint import checkpoints

pytestmark = pytest.mark.usefixtures('narrow_models')


def fit(root: Path, path: Path, keep: ResumableCheckpoint, **kwargs: Any) -> None:
    datamodule = SyntheticSentinel2DataModule(
        root=root, batch_size=kwargs.pop('batch_size', 8)
    )
    task = SIGMAETask(**SMALL)
    quiet_trainer(
        path,
        callbacks=[keep],
        limit_val_batches=0,
        max_epochs=kwargs.pop('max_epochs', 1),
        limit_train_batches=6,
    ).fit(task, resumable(datamodule), **kwargs)


def names(path: Path) -> list[str]:
    return [actual.name for actual in checkpoints(path)]


def test_the_newest_are_kept(synthetic_root: Path, tmp_path: Path) -> None:
    fit(synthetic_root, tmp_path, ResumableCheckpoint(every_n_train_steps=2))
    actual = ['step=000000006.ckpt', 'step=000000004.ckpt']
    assert names(tmp_path / 'resume') == actual
    assert sorted(os.listdir(tmp_path / 'resume')) == sorted(actual)
    everything = ResumableCheckpoint(tmp_path / 'other', every_n_train_steps=2, keep=9)
    fit(synthetic_root, tmp_path, everything)
    assert len(names(tmp_path / 'other')) == 3


def test_by_time(
    synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def tick() -> float:
        clock[0] += 25
        return clock[0]

    monkeypatch.setattr(time, 'monotonic', tick)
    fit(synthetic_root, tmp_path, ResumableCheckpoint(every_n_minutes=1, keep=9))
    # Asked before batches 2 to 6: after 75 s, and not again for a minute.
    assert names(tmp_path / 'resume')[-1] == 'step=000000003.ckpt'
    never = ResumableCheckpoint(tmp_path / 'end', every_n_minutes=1e6)
    fit(synthetic_root, tmp_path, never)
    assert names(tmp_path / 'end') == ['step=000000006.ckpt']


def test_half_written_ones_are_removed(synthetic_root: Path, tmp_path: Path) -> None:
    half = tmp_path / 'resume' / 'step=000000003.part'
    half.parent.mkdir()
    half.write_bytes(b'half')
    fit(synthetic_root, tmp_path, ResumableCheckpoint())
    assert not half.exists()


def test_a_crash_while_writing_leaves_the_one_before(
    synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    written = []

    def crash(source: Any, target: Any) -> None:
        if str(target).endswith('.ckpt'):
            written.append(target)
            if len(written) == 2:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, 'replace', crash)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(synthetic_root, tmp_path, ResumableCheckpoint(every_n_train_steps=2))
    actual = newest_checkpoint(tmp_path / 'resume')
    assert actual is not None
    assert actual[0].name == 'step=000000002.ckpt'
    assert actual[1]['global_step'] == 2


def test_another_order_of_the_data_warns(synthetic_root: Path, tmp_path: Path) -> None:
    keep = ResumableCheckpoint(every_n_train_steps=2, keep=9)
    fit(synthetic_root, tmp_path, keep)
    path = tmp_path / 'resume' / 'step=000000004.ckpt'
    with pytest.warns(UserWarning, match=r"drew its data with .*'batch_size': 8"):
        fit(synthetic_root, tmp_path, keep, ckpt_path=path, batch_size=6, max_epochs=2)


@pytest.mark.parametrize(
    'options', [{'keep': 0}, {'every_n_train_steps': 0}, {'every_n_minutes': -1.0}]
)
def test_bad_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=rf'{next(iter(options))}: .* must be positive'
    ):
        ResumableCheckpoint(**options)


# --------------------------------------------------------------------------- look-up


def sound(path: Path, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': {}, 'loops': {}, 'global_step': step}, path)


class Payload:
    """A pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_folder_without_our_checkpoints(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / 'nowhere') is None
    sound(tmp_path / 'last.ckpt', 1)  # not ours
    assert newest_checkpoint(tmp_path) is None


def test_the_newest_checkpoint_by_step(tmp_path: Path) -> None:
    for step in (9, 10, 1000):
        sound(tmp_path / f'step={step:09}.ckpt', step)
    actual = newest_checkpoint(tmp_path)
    assert actual is not None
    assert actual[1]['global_step'] == 1000


def damage(path: Path, how: str, evil: Path) -> None:
    content = path.read_bytes()
    if how == 'empty':
        path.write_bytes(b'')
    elif how == 'truncated':
        path.write_bytes(content[: len(content) // 2])
    elif how == 'garbage':
        path.write_bytes(os.urandom(len(content)))
    elif how == 'opcode':
        path.write_bytes(b'\x81')  # to an unpickler: take from an empty stack
    elif how == 'other':
        torch.save({'weights': 1}, path)
    elif how == 'list':
        torch.save([1, 2], path)
    else:
        path.write_bytes(pickle.dumps({'state_dict': Payload(evil), 'loops': {}}))


@pytest.mark.parametrize(
    'how', ['empty', 'truncated', 'garbage', 'opcode', 'other', 'list', 'code']
)
def test_a_damaged_newest_falls_back_to_the_one_before(
    tmp_path: Path, how: str
) -> None:
    sound(tmp_path / 'step=000000001.ckpt', 1)
    sound(tmp_path / 'step=000000002.ckpt', 2)
    damage(tmp_path / 'step=000000002.ckpt', how, tmp_path / 'evil')
    with pytest.warns(UserWarning, match='step=000000002.ckpt cannot be read') as seen:
        actual = newest_checkpoint(tmp_path)
    assert any('the one before' in str(w.message) for w in seen)
    assert actual is not None
    assert actual[1]['global_step'] == 1
    assert not (tmp_path / 'evil').exists()
    damage(tmp_path / 'step=000000001.ckpt', how, tmp_path / 'evil')
    with pytest.raises(
        RuntimeError, match=r'No checkpoint in .* can be read: .*Remove'
    ):
        newest_checkpoint(tmp_path)
    assert not (tmp_path / 'evil').exists()
