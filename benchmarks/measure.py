# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""How benchmarks measure time, memory and floating-point operations.

- Time: all contenders take turns in one process; median and quartiles.
- Memory: a process for each contender, which takes two steps (the first makes the
  optimizer's state). Peak minus the memory of weights and batch: resident memory on the
  CPU (Linux only), allocated memory on a GPU.
- FLOP: matrix products in forward and backward, as torch counts them with attention as
  plain matrix products. What fused attention recomputes is not counted.
"""

import argparse
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from torchgeo_sigmae import SyntheticSentinel2
from torchgeo_sigmae.datasets import SceneChips, find_scenes

from .pack import read_packed

__all__ = (
    'DATA',
    'Clock',
    'Run',
    'count_flop',
    'environment',
    'inside',
    'interleave',
    'matmul_rate',
    'measure_memory',
    'megabytes',
    'now',
    'peak_memory',
    'product',
    'quartiles',
    'quiet',
    'quiet_trainer',
    'read_batch',
    'run_module',
    'shares',
    'where',
    'write_record',
    'write_table',
)

#: Default folder of the real data.
DATA = Path(os.environ.get('SIGMAE_DATA', '../shared/data'))

#: Operators by what they are, regular expressions.
OPERATORS = {
    'products': '(add|b|badd)*mm|.*convolution.*',
    'attention': '_scaled_dot_product.*|.*softmax.*',
    'activations, norms': '(gelu|native_layer_norm)(_backward)?',
    'optimizer': '_fused_adamw_|_foreach_.*|lerp_|addc(mul|div)_|sqrt|div',
    'copies': 'copy_|cat|gather|index|where|scatter.*',
}

#: Side of the matrices of the matrix product; a GPU multiplies small ones faster than
#: its clock is read.
SIDE = {'cpu': 2048, 'cuda': 8192}


def now(device: str) -> float:
    """Read the clock, once the device has done all its work."""
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def read_batch(
    arguments: argparse.Namespace, size: int | None = None
) -> tuple[Tensor, str]:
    """Read normalized images ``(B, 10, H, W)``; say what they are."""
    size = size or arguments.size
    count, root = arguments.batch_size, arguments.data / 'scenes'
    chips: Dataset[dict[str, Tensor]]
    if arguments.data.is_file():
        tiles, _ = read_packed(arguments.data, 64)
        chips = [
            {'image': torch.from_numpy(tile[:, i : i + size, j : j + size]).float()}
            for tile in tiles
            for i in range(0, tile.shape[1] - size + 1, size)
            for j in range(0, tile.shape[2] - size + 1, size)
        ]
        title = f'real Sentinel-2 chips of {arguments.data.name}'
    elif root.is_dir():
        # Without a scene of haze with stripes.
        scenes = find_scenes(root, exclude='*T33NZA*')
        scenes = [s for s in scenes if min(s.height, s.width) >= size]
        chips = SceneChips(scenes, size=size, random=False, length=count)
        title = f'real Sentinel-2 chips of {len(scenes)} scenes'
    else:
        chips = SyntheticSentinel2(arguments.output, 'val')
        title = f'synthetic chips (there is no {root})'
    images = torch.stack([chips[i % len(chips)]['image'] for i in range(count)])
    repeat = math.ceil(size / images.shape[-1])
    images = images.tile(repeat, repeat)[..., :size, :size].contiguous()
    return (images.nan_to_num() - 2000) / 1000, title


def measure_memory(
    arguments: argparse.Namespace,
    build: Callable[..., Callable[[], Any]],
    jobs: Sequence[Sequence[Any]],
) -> list[int | None]:
    """Measure the memory of several contenders, one after the other."""
    # Tensors come from the system and go back at once, so that resident memory follows
    # what is allocated.
    os.environ['MALLOC_MMAP_THRESHOLD_'] = '65536'
    # Processes start from one in which the package is imported, and nothing has run.
    context = get_context('forkserver')
    context.set_forkserver_preload(['torchgeo_sigmae'])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(_peak_memory, arguments, build, job) for job in jobs]
        return [future.result() for future in tqdm(futures, 'Memory', disable=None)]


def _peak_memory(
    arguments: argparse.Namespace,
    build: Callable[..., Callable[[], Any]],
    job: Sequence[Any],
) -> int | None:
    """Bytes at the peak of two steps, above those before."""
    torch.set_num_threads(arguments.threads)
    # What libraries set up at first use is not the contender's.
    build(arguments, *job, small=True)()
    step = build(arguments, *job, small=False)
    return peak_memory(lambda: (step(), step()), arguments.device)


def peak_memory(call: Callable[[], Any], device: str = 'cpu') -> int | None:
    """Measure the memory of a call."""
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    try:
        # Forget the peak so far. ru_maxrss would tell the parent's.
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        call()
        return None
    before = _resident('VmRSS')
    call()
    return _resident('VmHWM') - before


def _resident(key: str) -> int:
    """Look up the resident memory of this process."""
    status = Path('/proc/self/status').read_text()
    match = re.search(rf'{key}:\s+(\d+) kB', status)
    assert match is not None
    return 1024 * int(match[1])


class Run(NamedTuple):
    """What a process took: seconds, its largest resident memory, and its output."""

    seconds: float
    peak_gigabytes: float
    output: str


def run_module(*arguments: object) -> Run:
    """Run ``python -m ARGUMENTS`` in a process, to its end; stop if it fails."""
    command = [sys.executable, '-m', *map(str, arguments)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        sys.exit(f'{" ".join(command)} failed.')
    return Run(time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9, output)


def interleave(
    arguments: argparse.Namespace, calls: Sequence[Callable[[], Any]], title: str
) -> list[list[Any]]:
    """Call all in turn, again and again."""
    results: list[list[Any]] = [[] for _ in calls]
    rounds = range(arguments.warm_up + arguments.repetitions)
    for turn in tqdm(rounds, title, disable=None):
        for values, call in zip(results, calls, strict=True):
            value = call()
            if turn >= arguments.warm_up:
                values.append(value)
    return results


def product(
    arguments: argparse.Namespace, precision: str | None = None
) -> Callable[[], float]:
    """Make a matrix product to measure beside the contenders."""
    half = (precision or arguments.precision) == 'bf16'
    dtype = torch.bfloat16 if half else torch.float32
    side, device = SIDE[arguments.device], arguments.device
    matrix = torch.randn(side, side, device=device).to(dtype)

    def multiply() -> float:
        start = now(device)
        torch.matmul(matrix, matrix)
        return now(device) - start

    return multiply


def matmul_rate(seconds: Sequence[float], device: str = 'cpu') -> float:
    """Turn the times of :func:`product` into a rate."""
    return 2 * SIDE[device] ** 3 / float(np.median(seconds))


def inside(call: Callable[[], Any], *modes: AbstractContextManager[Any]) -> Any:
    """Call inside contexts."""
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        return call()


def count_flop(step: Callable[..., Any]) -> int:
    """Count the floating-point operations of the matrix products of a step."""
    counter = FlopCounterMode(display=False)
    step(sdpa_kernel(SDPBackend.MATH), counter)
    return counter.get_total_flops()


def shares(step: Callable[..., float]) -> dict[str, float]:
    """Shares of the time of a step on a CPU, by kinds of operators, and Python's."""
    profiler = profile(activities=[ProfilerActivity.CPU])
    seconds = step(profiler)
    parts = dict.fromkeys([*OPERATORS, 'other operators'], 0.0)
    for event in profiler.key_averages():
        if event.key.startswith('aten::'):
            name = event.key.removeprefix('aten::')
            groups = [g for g, names in OPERATORS.items() if re.fullmatch(names, name)]
            group = groups[0] if groups else 'other operators'
            parts[group] += event.self_cpu_time_total / 1e6 / seconds
    return {**parts, 'Python': 1 - sum(parts.values())}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Find the quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return low, middle, high


def megabytes(count: int | None) -> str:
    """Write a number of bytes."""
    return 'unknown' if count is None else f'{count / 2**20:.0f} MiB'


def environment() -> dict[str, Any]:
    """Versions, threads, processor and date."""
    cpu = platform.processor()
    if Path('/proc/cpuinfo').exists():
        match = re.search('model name\t: (.*)', Path('/proc/cpuinfo').read_text())
        cpu = match[1] if match else cpu
    return {
        'date': datetime.now().astimezone().isoformat(timespec='seconds'),
        'cpu': cpu,
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'versions': {
            name: version(name) for name in ('torch', 'torchgeo', 'timm', 'lightning')
        },
    }


def where() -> str:
    """The machine and the versions, for the line below a table."""
    machine = environment()
    names = [f'{name} {number}' for name, number in machine['versions'].items()]
    gpu = [machine['gpu']] if machine['gpu'] else []
    threads = f'{machine["threads"]} threads'
    return ', '.join([threads, machine['cpu'], *gpu, *names, machine['date']])


def write_record(arguments: argparse.Namespace, name: str, **measured: Any) -> None:
    """Write measurements with machine and options to OUTPUT/NAME.json."""
    content = {
        **environment(),
        'arguments': {key: str(value) for key, value in vars(arguments).items()},
        **measured,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f'{name}.json'
    path.write_text(json.dumps(content, indent=2) + '\n')
    print(f'\nWrote {path}.')


def write_table(path: Path, lines: Sequence[str], note: str) -> None:
    """Write and print a table, with a note and the machine below it."""
    text = '\n'.join([*lines, '', f'{note}; {where()}.'])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text}\n')
    print(text)


class Clock(Callback):
    """Notes the time at the end of every training step."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.times: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the time."""
        self.times.append(self.clock())


def quiet_trainer(arguments: argparse.Namespace, **kwargs: Any) -> Trainer:
    """Make a trainer that prints nothing and writes nothing but statistics."""
    return Trainer(
        devices=1,
        precision=arguments.precision,
        default_root_dir=arguments.output / 'statistics',
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def quiet() -> None:
    """Silence Lightning's messages."""
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module='lightning')
    warnings.filterwarnings('ignore', message='.*LeafSpec.*')
