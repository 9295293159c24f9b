# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Do several processes train as one would, and end when one of them dies?

    python -m soak.processes [--only PART ...] [--output FOLDER]

Gloo processes on the CPU, started as ``torchrun`` does:

- an epoch on 1, 2 and 4 processes, 16 samples a step in all: the same samples under the
  same masks in every step, and none twice; on 3 none twice;
- every family under every masking on 2: no parameter without a gradient;
- a process that is killed, and one that hangs: the other ends with an error;
- two processes, killed and started again: equal to a run nobody touched, bit by bit;
- FSDP2: shards, and takes the steps DDP takes.
"""

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from torchgeo_sigmae import SyntheticSentinel2DataModule
from torchgeo_sigmae.masking import MASKINGS

from . import group
from .children import join, kill, start_group
from .kills import EPOCHS, differences, launch, survive
from .trial import conclude, trial_parser

__all__ = ('dies', 'every_task', 'masks', 'resumes', 'sharded')

#: Seconds a group may take beside another busy core.
PATIENCE = 900

#: Seconds a collective may take where a process hangs.
TIMEOUT = 20

#: Tasks whose masks are compared. Augmentation is drawn for a batch of a process, and
#: saliency sees what is augmented.
COMPARED: dict[str, dict[str, Any]] = {
    'random, augmented': {'masking': 'random', 'predict_ratio': 0.5},
    'saliency, not augmented': {
        'masking': 'saliency', 'saliency_start': 1.0, 'plain': True,
    },
}  # fmt: skip


def told(folder: Path) -> list[tuple[str, str, str, str]]:
    """Read what all processes told of their samples.

    Args:
        folder: Where :class:`soak.runs.HashedTask` told.

    Returns:
        Epoch, step, chip and mask of every sample.
    """
    rows = [
        tuple(line.split())
        for path in sorted(folder.glob('*.txt'))
        for line in path.read_text().splitlines()
    ]
    return [row for row in rows if len(row) == 4]


def ended(folder: Path) -> list[dict[str, Any]]:
    """Read how the fits of all processes ended.

    Args:
        folder: Of :func:`soak.group.fit_all`.

    Returns:
        By rank, for every fit an error or a sum of weights.
    """
    return [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]


def masks(
    chips: Path,
    root: Path,
    sizes: tuple[int, ...] = (1, 2, 4),
    limit: int | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Compare the masks of samples between numbers of processes.

    Args:
        chips: Folder of the chips.
        root: An empty folder.
        sizes: Numbers of processes.
        limit: Batches; None for an epoch.

    Returns:
        What was found, and what does not hold.
    """
    failures = []
    for size in sizes:
        folder = root / str(size)
        processes = start_group(size, group.fit_all, chips, folder, COMPARED, limit)
        if (status := join(processes, PATIENCE)) != [0] * size:
            return {}, [f'{size} processes ended with {status}']
    counts = set()
    for name in COMPARED:
        alone = sorted(told(root / str(sizes[0]) / name))
        counts.add(len(alone))
        for size in sizes:
            rows = sorted(told(root / str(size) / name))
            if rows != alone:
                failures.append(f'{name}: {size} processes mask otherwise than 1')
            if len({row[2] for row in rows}) != len(rows):
                failures.append(f'{name}: {size} processes see a chip twice')
        if len({row[3] for row in alone}) < len(alone) - 1:
            failures.append(f'{name}: samples share masks')
    found = f'{", ".join(map(str, sorted(counts)))} samples of an epoch, none twice'
    numbers = ', '.join(map(str, sizes))
    return {f'chips and masks equal on {numbers} processes': found}, failures


def uneven(chips: Path, root: Path) -> tuple[dict[str, str], list[str]]:
    """Share 256 chips out among 3 processes of 5 a step.

    Args:
        chips: Folder of the chips.
        root: An empty folder.

    Returns:
        What was found, and what does not hold.
    """
    jobs = {'uneven': {'batch_size': 15}}
    status = join(start_group(3, group.fit_all, chips, root, jobs, None), PATIENCE)
    if status != [0] * 3:
        return {}, [f'3 processes ended with {status}']
    names = [row[2] for row in told(root / 'uneven')]
    failures = ['3 processes see a chip twice'] * (len(set(names)) != len(names))
    return {
        '3 processes, 15 a step': f'{len(names)} of 256 chips, none twice'
    }, failures


def combinations() -> dict[str, dict[str, Any]]:
    """List the tasks whose parameters must all be used.

    Returns:
        Arguments by name.
    """
    found: dict[str, dict[str, Any]] = {}
    for family in ('sigmae', 's2mae', 'satmae'):
        for masking in MASKINGS:
            if family == 'sigmae' and masking not in {'saliency', 'random'}:
                continue
            model = f'{family}_vit_tiny_patch8'
            found[f'{family} {masking}'] = {'model': model, 'masking': masking}
        for name, more in {
            'self': {'decoder': 'self'},
            'share': {'predict_ratio': 0.3},
            'spectral': {'spectral_weight': 0.1, 'norm_pix_loss': True},
        }.items():
            found[f'{family} {name}'] = {'model': model, **more}
    return found


def every_task(
    chips: Path, root: Path, jobs: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, str], list[str]]:
    """Fit tasks on two processes, which refuse parameters that are not used.

    Args:
        chips: Folder of the chips.
        root: An empty folder.
        jobs: Arguments by name.

    Returns:
        What was found, and what does not hold.
    """
    status = join(start_group(2, group.fit_all, chips, root, jobs, 3), PATIENCE)
    if status != [0, 0]:
        return {}, [f'2 processes ended with {status}']
    one, other = ended(root)
    failures = [f'{name}: {end}' for name, end in one.items() if isinstance(end, str)]
    failures += [f'{name}: weights differ' for name in jobs if one[name] != other[name]]
    return {
        'families and maskings without an unused parameter': str(len(jobs))
    }, failures


def refuses_unused(chips: Path, root: Path) -> list[str]:
    """Check that an unused parameter would have been found.

    Args:
        chips: Folder of the chips.
        root: An empty folder.

    Returns:
        What does not hold.
    """
    jobs = {'unused': {'unused': True}}
    join(start_group(2, group.fit_all, chips, root, jobs, 3), PATIENCE)
    ends = [str(end.get('unused')) for end in ended(root)]
    known = [end for end in ends if 'parameters that were not used' in end]
    return [] if known else [f'an unused parameter was not found: {ends}']


def dies(
    chips: Path, root: Path, how: signal.Signals, rank: int
) -> tuple[dict[str, str], list[str]]:
    """Kill one of two processes, or have it hang, and wait for the other.

    Args:
        chips: Folder of the chips.
        root: An empty folder.
        how: SIGKILL or SIGSTOP.
        rank: Which one.

    Returns:
        What was found, and what does not hold.
    """
    root.mkdir(parents=True)
    timeout = TIMEOUT if how is signal.SIGSTOP else None
    both = start_group(2, group.fit_forever, chips, root, timeout)
    end = time.monotonic() + PATIENCE
    while not all((root / f'{i}.txt').exists() for i in (0, 1)):
        if time.monotonic() > end or any(p.exitcode is not None for p in both):
            join(both, 0)
            return {}, ['two processes did not begin to train']
        time.sleep(0.1)
    os.kill(both[rank].pid, how)
    before = time.monotonic()
    both[1 - rank].join(TIMEOUT + 60)
    seconds, status = time.monotonic() - before, both[1 - rank].exitcode
    for process in both:
        kill(process)
    what = 'killed' if how is signal.SIGKILL else f'hangs, timeout {TIMEOUT} s'
    failures = [] if status else [f'rank {rank} {what}: the other ended with {status}']
    found = f'the other ends after {seconds:.1f} s with status {status}'
    return {f'rank {rank} {what}': found}, failures


def resumes(
    chips: Path, root: Path, aims: tuple[str, ...] = ('training', 'checkpoint')
) -> tuple[dict[str, str], list[str]]:
    """Kill the first of two processes, continue both, and compare.

    Args:
        chips: Folder of the chips.
        root: An empty folder.
        aims: What kills are aimed at.

    Returns:
        What was found, and what does not hold.
    """
    options = (*EPOCHS, '--trainer.max_epochs=5')
    quiet = launch(chips, root / 'quiet', 0, options, size=2)
    if (status := join(quiet, PATIENCE)) != [0, 0]:
        return {}, [f'2 processes of the command line ended with {status}']
    try:
        landed = survive(
            chips, root / 'killed', 0, aims, random.Random(1), options, size=2
        )
    except RuntimeError as error:
        return {}, [f'2 processes, killed: {error}']
    wrong = differences(root / 'killed', root / 'quiet')
    found = f'{landed.total()} kills, ' + ('NOT equal' if wrong else 'equal bit by bit')
    return {'2 processes, the first killed': found}, [
        f'2 processes: {w}' for w in wrong
    ]


def sharded(chips: Path, root: Path) -> tuple[dict[str, str], list[str]]:
    """Take four steps under FSDP2 and under DDP.

    Args:
        chips: Folder of the chips.
        root: An empty folder.

    Returns:
        What was found, and what does not hold.
    """
    ends = []
    for name in ('ddp', 'fsdp'):
        (root / name).mkdir(parents=True)
        both = start_group(2, group.fit_sharded, chips, root / name, name == 'fsdp')
        if (status := join(both, PATIENCE)) != [0, 0]:
            return {}, [f'{name}: ended with {status}']
        ends.append(torch.load(root / name / '0.pt'))
    (_, plain), (count, found) = ends
    apart = max(float((found[key] - plain[key]).abs().max()) for key in plain)
    failures = [] if count == len(plain) else [f'FSDP2 shards {count} tensors only']
    failures += [f'FSDP2: weights differ from DDP by {apart}'] * (apart > 1e-4)
    what = f'{count} tensors, {apart:.1e} from DDP at most after 4 steps'
    return {'FSDP2 on 2 processes': what}, failures


def main(arguments: Any, root: Path) -> tuple[dict[str, str], list[str]]:
    """Run the trial.

    Args:
        arguments: See the module.
        root: An empty folder.

    Returns:
        What was found, and what does not hold.
    """
    chips = root / 'chips'
    SyntheticSentinel2DataModule(root=str(chips)).prepare_data()
    figures: dict[str, str] = {}
    failures = []
    parts: dict[str, Callable[[Path], tuple[dict[str, str], list[str]]]] = {
        'masks': lambda path: masks(chips, path),
        'uneven': lambda path: uneven(chips, path),
        'tasks': lambda path: every_task(chips, path, combinations()),
        'killed': lambda path: dies(chips, path, signal.SIGKILL, 1),
        'hangs': lambda path: dies(chips, path, signal.SIGSTOP, 1),
        'resumes': lambda path: resumes(chips, path),
        'sharded': lambda path: sharded(chips, path),
        'unused': lambda path: ({}, refuses_unused(chips, path)),
    }
    for name, part in parts.items():
        if arguments.only and name not in arguments.only:
            continue
        found, wrong = part(root / name)
        print(found, wrong, flush=True)
        figures |= found
        failures += wrong
    return figures, failures


if __name__ == '__main__':
    parser = trial_parser(__doc__)
    parser.add_argument('--only', nargs='+', help='parts, by the name of their folder')
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = main(chosen, Path(folder))
    conclude(chosen.output, 'processes', *result)
