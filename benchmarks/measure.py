# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""How benchmarks measure: in turn, with what it takes, and on what.

- Time: all contenders in turn, in one process; median and quartiles.
- Memory: a process for each contender, which takes two steps (the first makes the
  optimiser's state). What its peak is above the time before, when weights and batch
  were there: resident memory on the CPU (Linux only), allocated memory on a GPU.
- FLOP: those of the matrix products in forward and backward, as torch counts them with
  attention as plain matrix products. Fused attention recomputes some, which is not
  counted.
"""

import argparse
import json
import logging
import math
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
    'read_batch',
    'read_chips',
    'shares',
    'where',
    'write_record',
)

#: Real data, unless told otherwise.
DATA = Path(os.environ.get('SIGMAE_DATA', '../shared/data'))

#: Operators by what they are, regular expressions.
OPERATORS = {
    'products': '(add|b|badd)*mm|.*convolution.*',
    'attention': '_scaled_dot_product.*|.*softmax.*',
    'activations, norms': '(gelu|native_layer_norm)(_backward)?',
    'optimiser': '_fused_adamw_|_foreach_.*|lerp_|addc(mul|div)_|sqrt|div',
    'copies': 'copy_|cat|gather|index|where|scatter.*',
}

#: Side of the matrices of the matrix product; a GPU multiplies small ones faster than
#: its clock is read.
SIDE = {'cpu': 2048, 'cuda': 8192}


def now(device: str) -> float:
    """Read the clock, once the device has done all its work.

    Args:
        device: ``'cpu'`` or ``'cuda'``.

    Returns:
        Seconds.
    """
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def read_chips(arguments: argparse.Namespace, size: int) -> tuple[Tensor, str]:
    """Read the batch.

    Args:
        arguments: See the module.
        size: Side of the chips in pixels.

    Returns:
        Raw images ``(B, 10, size, size)``, and what they are.
    """
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
        # Haze with stripes is left out.
        scenes = find_scenes(root, exclude='*T33NZA*')
        scenes = [s for s in scenes if min(s.height, s.width) >= size]
        chips = SceneChips(scenes, size=size, random=False, length=count)
        title = f'real Sentinel-2 chips of {len(scenes)} scenes'
    else:
        chips = SyntheticSentinel2(arguments.output, 'val')
        title = f'synthetic chips (there is no {root})'
    images = torch.stack([chips[i % len(chips)]['image'] for i in range(count)])
    repeat = math.ceil(size / images.shape[-1])
    return images.tile(repeat, repeat)[..., :size, :size].contiguous(), title


def read_batch(arguments: argparse.Namespace) -> tuple[Tensor, str]:
    """Read the batch.

    Args:
        arguments: See the module.

    Returns:
        Normalised images ``(B, 10, H, W)``, and what they are.
    """
    images, title = read_chips(arguments, arguments.size)
    return (images.nan_to_num() - 2000) / 1000, title


def measure_memory(
    arguments: argparse.Namespace,
    build: Callable[..., Callable[[], Any]],
    jobs: Sequence[Sequence[Any]],
) -> list[int | None]:
    """Measure the memory of several contenders, one after the other.

    Args:
        arguments: Threads and device.
        build: Makes the step of a contender, from *arguments*, what is in its job, and
            whether it is to be small. A function of a module.
        jobs: What each contender is.

    Returns:
        Bytes of each; None where unknown.
    """
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
    """Measure the memory of a call.

    Args:
        call: What to call.
        device: ``'cpu'`` or ``'cuda'``.

    Returns:
        Bytes at its peak above those before; None where unknown.
    """
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
    """Look up the resident memory of this process.

    Args:
        key: ``'VmRSS'`` for now, ``'VmHWM'`` for its peak.

    Returns:
        Bytes.
    """
    status = Path('/proc/self/status').read_text()
    found = re.search(rf'{key}:\s+(\d+) kB', status)
    assert found is not None
    return 1024 * int(found[1])


def interleave(
    arguments: argparse.Namespace, calls: Sequence[Callable[[], Any]], title: str
) -> list[list[Any]]:
    """Call all in turn, again and again.

    Args:
        arguments: See the module.
        calls: What to call.
        title: Title of the progress bar.

    Returns:
        What each returned, without the warm-up.
    """
    found: list[list[Any]] = [[] for _ in calls]
    rounds = range(arguments.warm_up + arguments.repetitions)
    for turn in tqdm(rounds, title, disable=None):
        for values, call in zip(found, calls, strict=True):
            value = call()
            if turn >= arguments.warm_up:
                values.append(value)
    return found


def product(
    arguments: argparse.Namespace, precision: str | None = None
) -> Callable[[], float]:
    """Make a matrix product to measure beside the contenders.

    Args:
        arguments: Device and precision.
        precision: Another one.

    Returns:
        A function that takes it, and returns the seconds it took.
    """
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
    """Turn the times of :func:`product` into a rate.

    Args:
        seconds: What it took.
        device: ``'cpu'`` or ``'cuda'``.

    Returns:
        Floating-point operations per second, of the median.
    """
    return 2 * SIDE[device] ** 3 / float(np.median(seconds))


def inside(call: Callable[[], Any], *modes: AbstractContextManager[Any]) -> Any:
    """Call inside contexts.

    Args:
        call: What to call.
        *modes: The contexts.

    Returns:
        What it returns.
    """
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        return call()


def count_flop(step: Callable[..., Any]) -> int:
    """Count the floating-point operations of the matrix products of a step.

    Args:
        step: The step, which takes the contexts to be taken in.

    Returns:
        Their number, a multiplication and an addition being two.
    """
    counter = FlopCounterMode(display=False)
    step(sdpa_kernel(SDPBackend.MATH), counter)
    total: int = counter.get_total_flops()
    return total


def shares(step: Callable[..., float]) -> dict[str, float]:
    """Find out where the time of a step on a CPU goes.

    Args:
        step: The step, which takes the contexts to be taken in and returns the seconds
            it took.

    Returns:
        Shares of its time: of every group of :data:`OPERATORS`, other operators, and
        what is left, Python.
    """
    profiler = profile(activities=[ProfilerActivity.CPU])
    seconds = step(profiler)
    found = dict.fromkeys([*OPERATORS, 'other operators'], 0.0)
    for event in profiler.key_averages():
        if event.key.startswith('aten::'):
            name = event.key.removeprefix('aten::')
            groups = [g for g, known in OPERATORS.items() if re.fullmatch(known, name)]
            group = groups[0] if groups else 'other operators'
            found[group] += event.self_cpu_time_total / 1e6 / seconds
    return {**found, 'Python': 1 - sum(found.values())}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Find the quartiles.

    Args:
        values: Measured values.

    Returns:
        The first quartile, the median and the third.
    """
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return low, middle, high


def megabytes(count: int | None) -> str:
    """Write a number of bytes.

    Args:
        count: Bytes, or None.

    Returns:
        For example ``512 MiB``.
    """
    return 'unknown' if count is None else f'{count / 2**20:.0f} MiB'


def environment() -> dict[str, Any]:
    """Say on what is measured.

    Returns:
        Versions, threads, processor and date.
    """
    cpu = platform.processor()
    if Path('/proc/cpuinfo').exists():
        found = re.search('model name\t: (.*)', Path('/proc/cpuinfo').read_text())
        cpu = found[1] if found else cpu
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
    """Say what was measured on, for the foot of a table.

    Returns:
        Threads, processor, versions and the date.
    """
    known = environment()
    versions = ', '.join(f'{name} {v}' for name, v in known['versions'].items())
    gpu = f'{known["gpu"]}, ' if known['gpu'] else ''
    return (
        f'{known["threads"]} threads, {known["cpu"]}, {gpu}{versions}, {known["date"]}'
    )


def write_record(arguments: argparse.Namespace, name: str, **measured: Any) -> None:
    """Write what was measured, on what and with which options.

    Args:
        arguments: The options; the file goes to ``output``.
        name: Name of the file.
        **measured: What was measured.
    """
    content = {
        **environment(),
        'arguments': {key: str(value) for key, value in vars(arguments).items()},
        **measured,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f'{name}.json'
    path.write_text(json.dumps(content, indent=2) + '\n')
    print(f'\nWrote {path}.')


def quiet() -> None:
    """Keep Lightning from talking, once per run."""
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module='lightning')
    warnings.filterwarnings('ignore', message='.*LeafSpec.*')
