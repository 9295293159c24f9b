# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Distributed runs on the CPU: gloo processes, started as ``torchrun`` starts them."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.distributed import fit_forever, fit_group, fit_sharded, samples
from helpers.killed_runs import Run, differences
from helpers.processes import join, kill, start_group
from torchgeo_sigmae import Guidance
from torchgeo_sigmae.masking import MASKINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def every_masking() -> dict[str, dict[str, Any]]:
    """All families under all maskings, decoders and shares."""
    jobs: dict[str, dict[str, Any]] = {}
    for family in ('sigmae', 's2mae', 'satmae'):
        model = {'model': f'{family}_vit_tiny_patch8'}
        maskings = ('saliency', 'random') if family == 'sigmae' else MASKINGS
        for masking in maskings:
            jobs[f'{family} {masking}'] = {**model, 'masking': masking}
        jobs[f'{family} self'] = {**model, 'decoder': 'self'}
        jobs[f'{family} share'] = {**model, 'predict_ratio': 0.3}
        jobs[f'{family} spectral'] = {
            **model, 'spectral_weight': 0.1, 'norm_pix_loss': True
        }  # fmt: skip
    return jobs


def test_an_epoch_is_the_same_on_four_processes(
    synthetic_root: Path, tmp_path: Path
) -> None:
    jobs = {
        'random': {'masking': 'random'},
        'saliency': {'guidance': Guidance((1.0, 1.0)), 'augment': False},
    }
    for size in (1, 4):
        fit_group(size, synthetic_root, tmp_path / str(size), jobs)
    for job in jobs:
        rows = samples(tmp_path / '1' / job)
        assert samples(tmp_path / '4' / job) == rows
        assert len({chip for _, _, chip, _ in rows}) == len(rows) == 256


def test_three_processes_that_do_not_divide_the_chips_see_none_twice(
    synthetic_root: Path, tmp_path: Path
) -> None:
    fit_group(3, synthetic_root, tmp_path, {'uneven': {'batch_size': 15}})
    chips = [chip for _, _, chip, _ in samples(tmp_path / 'uneven')]
    assert len(set(chips)) == len(chips) == 255


def test_every_parameter_gets_a_gradient(synthetic_root: Path, tmp_path: Path) -> None:
    """DDP refuses parameters that get none, which a last job shows."""
    jobs = {**every_masking(), 'unused': {'unused': True}}
    outcomes = fit_group(2, synthetic_root, tmp_path, jobs, limit=3)
    unused = ' '.join(outcome.error for outcome in outcomes.pop('unused'))
    assert 'parameters that were not used' in unused
    for name, (first, second) in outcomes.items():
        assert not first.error, name
        assert torch.equal(first.weights, second.weights), name


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_ends_the_other(
    how: signal.Signals, synthetic_root: Path, tmp_path: Path
) -> None:
    timeout = 20 if how is signal.SIGSTOP else None
    first, second = start_group(2, fit_forever, 2, synthetic_root, tmp_path, timeout)
    end = time.monotonic() + 300
    while not all((tmp_path / f'{rank}.txt').exists() for rank in (0, 1)):
        assert time.monotonic() < end
        assert first.exitcode is second.exitcode is None
        time.sleep(0.1)
    os.kill(second.pid or 0, how)
    first.join(90)
    status = first.exitcode
    for process in (first, second):
        kill(process)
    assert status == 1


def test_a_killed_process_and_the_other_continue_to_the_same_end(
    synthetic_root: Path, tmp_path: Path
) -> None:
    whole = Run(synthetic_root, tmp_path / 'whole', epochs=5, processes=2)
    assert join(whole.start()) == [0, 0]
    killed = Run(synthetic_root, tmp_path / 'killed', epochs=5, processes=2)
    killed.survive(['training', 'checkpoint'], seed=1)
    assert differences(killed.folder, whole.folder) == []


def test_fsdp_takes_the_steps_of_ddp(synthetic_root: Path, tmp_path: Path) -> None:
    ends = []
    for name in ('ddp', 'fsdp'):
        folder = tmp_path / name
        folder.mkdir()
        sharded = name == 'fsdp'
        processes = start_group(2, fit_sharded, 2, synthetic_root, folder, sharded)
        assert join(processes) == [0, 0]
        ends.append(torch.load(folder / '0.pt', weights_only=True))
    (_, plain), (count, sharded_weights) = ends
    assert count == len(plain)
    torch.testing.assert_close(sharded_weights, plain, rtol=0, atol=1e-4)
