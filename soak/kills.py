# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Does a run that is killed again and again end as one that was not?

    python -m soak.kills [--kills 24] [--output FOLDER]

Kills one run (SIGKILL) at random moments, each time starts it again by the same
command, and compares its end with that of a run nobody touched, bit by bit: weights,
optimiser, schedule, what was collected over epochs, and the log by step, in which stand
loss, learning rate, curriculum and a hash of all masks and chips of every step. Some
kills are aimed, so that every place is hit: the start, training, validation, the end of
an epoch, a checkpoint half written (its ``.part`` was there), the log half written. A
second run, without workers, gets fewer kills, and others SIGTERM and SIGINT.
"""

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchgeo_sigmae import SyntheticSentinel2DataModule
from torchgeo_sigmae.callbacks import newest_checkpoint
from torchgeo_sigmae.plotting import read_log

from . import runs
from .children import join, start, start_group
from .trial import conclude, trial_parser

__all__ = ('AIMS', 'EPOCHS', 'differences', 'launch', 'survive')

CONFIG = Path(__file__).parents[1] / 'tests' / 'conf' / 'resume.yaml'

#: What kills are aimed at; ``'anywhere'`` is a moment drawn from the whole run.
AIMS = (*runs.PLACES[:-1], 'checkpoint', 'log', 'anywhere')

#: Seconds a run may take, started once, beside others.
PATIENCE = 900

#: Many short epochs of small batches, each validated: many ends to be hit.
EPOCHS = (
    '--data.init_args.batch_size=8',
    '--trainer.limit_train_batches=4',
    '--trainer.check_val_every_n_epoch=1',
)


def launch(
    root: Path,
    path: Path,
    workers: int,
    options: Sequence[str] = (),
    log_writes: int = 0,
    size: int = 1,
) -> list[Any]:
    """Start or continue a run.

    Args:
        root: Folder of the chips.
        path: Folder of the run.
        workers: Their number.
        options: More arguments of the command line.
        log_writes: The run dies in the midst of so many-th write to its log.
        size: Number of processes.

    Returns:
        The processes.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / 'told').unlink(missing_ok=True)
    arguments = [
        'fit',
        f'--config={CONFIG}',
        f'--trainer.default_root_dir={path}',
        f'--trainer.logger.init_args.save_dir={path}',
        # In front of the others, which may be killed in what it tells of.
        '--trainer.callbacks+=soak.runs.Tell',
        f'--trainer.callbacks.path={path / "told"}',
        '--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor',
        '--model.class_path=soak.runs.HashedTask',
        f'--data.init_args.num_workers={workers}',
        f'--data.dict_kwargs.root={root}',
        *options,
    ]
    known = {'SOAK_DIE_IN_LOG': str(log_writes)} if log_writes else {}
    if size == 1:
        return [start(runs.fit, arguments, environment=known)]
    arguments += ['--trainer.strategy=ddp', f'--trainer.devices={size}']
    return start_group(size, runs.fit, arguments, **known)


def survive(
    root: Path,
    path: Path,
    workers: int,
    aims: Sequence[str],
    chance: random.Random,
    options: Sequence[str] = (),
    how: signal.Signals = signal.SIGKILL,
    size: int = 1,
) -> Counter[str]:
    """Kill a run again and again, and let it end at last.

    Args:
        root: Folder of the chips.
        path: Folder of the run.
        workers: Their number.
        aims: What to aim at, of :data:`AIMS`, one a start.
        chance: Draws the moments.
        options: More arguments of the command line.
        how: The signal.
        size: Number of processes; the first is killed, the others are to end then.

    Returns:
        Where kills landed.

    Raises:
        RuntimeError: If the run ended before all kills, or with an error.
    """
    landed: Counter[str] = Counter()
    for aim in aims:
        writes = chance.randint(1, 4) if aim == 'log' else 0
        asked = 0
        process, *others = launch(root, path, workers, options, writes, size)
        if aim != 'log':
            _wait_for(aim, path, process, chance)
            if process.exitcode is not None:
                raise RuntimeError(f'ended before it came to {aim}')
            asked = _send(how, process)
        process.join(PATIENCE)
        status = process.exitcode
        if status is None or (how is signal.SIGKILL and status != -how):
            raise RuntimeError(
                f'status {status} after {landed.total()} of {len(aims)} kills'
            )
        place = where(path, aim)
        if status == 0 and place == 'end':
            raise RuntimeError(f'{how.name} aimed at {aim}: the run went on to its end')
        if asked > 1:
            place += f', asked {asked} times'
        landed[place] += 1
        print(f'{how.name} aimed at {aim} landed at {place} ({status})', flush=True)
        for group in (process, *others):
            _wait_for_end(group.pid)
    ends = join(launch(root, path, workers, options, size=size), PATIENCE)
    if any(end != 0 for end in ends):
        raise RuntimeError(f'the last start ended with status {ends}')
    return landed


def _wait_for(aim: str, path: Path, process: Any, chance: random.Random) -> None:
    """Wait for the moment of a kill, or the end."""
    after = time.monotonic() + chance.uniform(0, 4)
    often = chance.randint(1, 2)
    epochs = chance.randint(0, 2)
    parts: set[str] = set()
    while process.exitcode is None:
        place, counts = runs.told(path / 'told')
        if aim == 'start':
            if time.monotonic() > after:
                return
        elif aim == 'checkpoint':
            parts |= {part.name for part in (path / 'resume').glob('*.part')}
            if len(parts) >= often:
                time.sleep(chance.uniform(0, 0.02))
                return
        elif aim == 'anywhere':
            if place != 'start' and counts['epoch end'] >= epochs:
                time.sleep(chance.uniform(0, 0.5))
                return
        elif place == aim and counts[aim] >= often:
            time.sleep(chance.uniform(0, 0.02))
            return
        time.sleep(0.001)


def _send(how: signal.Signals, process: Any) -> int:
    """Send a signal; SIGINT again until it is heeded, for Python may drop one."""
    asked = 0
    while process.exitcode is None:
        os.kill(process.pid, how)
        asked += 1
        if how is not signal.SIGINT:
            break
        process.join(3)
    return asked


def where(path: Path, aim: str) -> str:
    """Tell where a run was when it died.

    Args:
        path: Its folder.
        aim: What the kill was aimed at.

    Returns:
        The place.
    """
    if aim == 'log':
        return aim
    if list((path / 'resume').glob('*.part')):
        return 'checkpoint'
    return runs.told(path / 'told')[0]


def _wait_for_end(group: int) -> None:
    """Workers find out within seconds that their trainer is gone; so do processes."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    raise RuntimeError(
        'workers or processes of a killed run are there after two minutes'
    )


def differences(found: Path, expected: Path) -> list[str]:
    """Compare the ends of two runs.

    Args:
        found: Folder of a run.
        expected: Folder of the other.

    Returns:
        What differs; nothing if they are equal bit by bit.
    """
    one, other = (newest_checkpoint(path / 'resume') for path in (found, expected))
    if one is None or other is None or one[0].name != other[0].name:
        return [f'the last checkpoints are {one and one[0]} and {other and other[0]}']
    parts = (
        'state_dict',
        'optimizer_states',
        'lr_schedulers',
        'epoch_metrics',
        'loops',
    )
    wrong = [part for part in parts if not equal(one[1][part], other[1][part])]
    log, whole = (read_log(path / 'log') for path in (found, expected))
    wrong += [f'{name} is in one log only' for name in sorted(set(log) ^ set(whole))]
    for name in set(log) & set(whole):
        if not all(map(np.array_equal, log[name], whole[name])):
            wrong.append(f'{name} in the log')
    return wrong


def equal(found: Any, expected: Any) -> bool:
    """Tell whether nested containers hold the same values, bit by bit.

    Args:
        found: Tensors, numbers or containers of them.
        expected: The others.

    Returns:
        Whether they do.
    """
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return set(found) == set(expected) and all(
            equal(found[key], expected[key]) for key in expected
        )
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return bool(found == expected)


def plan(kills: int, chance: random.Random) -> list[str]:
    """Choose what to aim at: each thing at least twice, the rest anywhere.

    Args:
        kills: How many.
        chance: Draws the order.

    Returns:
        Of :data:`AIMS`.
    """
    aims = [*AIMS[:-1] * 2, *['anywhere'] * kills][:kills]
    chance.shuffle(aims)
    return aims


def main(arguments: Any, root: Path) -> tuple[dict[str, str], list[str]]:
    """Run the trial.

    Args:
        arguments: See the module.
        root: An empty folder.

    Returns:
        What was found, and what does not hold.
    """
    SyntheticSentinel2DataModule(root=str(root / 'chips')).prepare_data()
    chips, chance = root / 'chips', random.Random(arguments.seed)
    options = (*EPOCHS, f'--trainer.max_epochs={arguments.epochs}')
    quiet = launch(chips, root / 'quiet', 0, options)
    figures: dict[str, str] = {}
    failures: list[str] = []
    for name, workers, aims, how in (
        ('2 workers', 2, plan(arguments.kills, chance), signal.SIGKILL),
        ('no workers', 0, plan(arguments.kills // 3, chance), signal.SIGKILL),
        ('no workers', 0, ['training', 'validation'], signal.SIGTERM),
        ('no workers', 0, ['training', 'validation', 'checkpoint'], signal.SIGINT),
    ):
        path = root / f'{how.name}-{workers}'
        try:
            landed = survive(chips, path, workers, aims, chance, options, how)
        except RuntimeError as error:
            failures.append(f'{how.name}, {name}: {error}')
            continue
        if (status := join(quiet, PATIENCE)) != [0]:
            return figures, [f'the quiet run ended with status {status}']
        places = ', '.join(f'{place} {n}' for place, n in landed.most_common())
        wrong = differences(path, root / 'quiet')
        figures[f'{how.name} of one run, {name}'] = f'{landed.total()} ({places}); ' + (
            'equal bit by bit' if not wrong else 'NOT equal'
        )
        failures += [f'{how.name}, {name}: {what}' for what in wrong]
        if workers and (missed := set(AIMS[:-1]) - set(landed)):
            failures.append(f'no kill landed at {", ".join(sorted(missed))}')
    return figures, failures


if __name__ == '__main__':
    parser = trial_parser(__doc__)
    parser.add_argument('--kills', type=int, default=24)
    parser.add_argument('--epochs', type=int, default=50)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = main(chosen, Path(folder))
    conclude(chosen.output, 'kills', *found)
