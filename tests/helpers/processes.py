# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Processes that tests start, watch and kill.

They are forked from a server that has imported torch, which saves seconds each.
"""

import ctypes
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROOT = Path(__file__).parents[2]

_SERVER = multiprocessing.get_context('forkserver')
_SERVER.set_forkserver_preload(['helpers.distributed'])


def start(
    target: Callable[..., None],
    *arguments: Any,
    environment: dict[str, str] | None = None,
) -> BaseProcess:
    """Start a process that runs a function of a module."""
    process = _SERVER.Process(target=_run, args=(target, arguments, environment or {}))
    process.start()
    return process


def start_group(
    size: int, target: Callable[..., None], *arguments: Any
) -> list[BaseProcess]:
    """Start the processes of one distributed run, as ``torchrun`` would, by rank."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    shared = {
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': port,
        'NODE_RANK': '0',
        'WORLD_SIZE': str(size),
    }
    return [
        start(target, *arguments, environment={**shared, 'LOCAL_RANK': str(rank)})
        for rank in range(size)
    ]


def join(processes: Sequence[BaseProcess], seconds: float = 600) -> list[int | None]:
    """Wait for processes, and kill those that are still there after so many seconds.

    Returns:
        The exit status of each; None for those that were killed.
    """
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    statuses = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            kill(process)
    return statuses


def kill(process: BaseProcess) -> None:
    """Kill a process and what it started."""
    try:
        os.killpg(process.pid or 0, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()


def run(module: str, *arguments: object) -> str:
    """Run ``python -m module arguments`` from the repository, and return its output.

    Raises:
        AssertionError: If it does not end with status 0 within five minutes.
    """
    with TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, 'stdout'), Path(folder, 'stderr')
        child = start(
            _program, module, [*map(str, arguments)], str(stdout), str(stderr)
        )
        (status,) = join([child], 300)
        assert status == 0, f'{module}: status {status}\n{stderr.read_text()[-3000:]}'
        return stdout.read_text()


def _run(
    target: Callable[..., None], arguments: Sequence[Any], environment: dict[str, str]
) -> None:
    """Run in a new process group, with workers that die with it.

    Workers are forked: those of the fork server would outlive a kill.
    """
    os.setpgrp()
    if sys.platform == 'linux':
        # PR_SET_PDEATHSIG: no process is left behind where the tests are stopped.
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    # A process that a shell started in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    multiprocessing.set_start_method('fork', force=True)
    # Several threads on so little work only get into each other's way.
    torch.set_num_threads(1)
    target(*arguments)


def _program(module: str, arguments: list[str], *streams: str) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(ROOT)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name='__main__', alter_sys=True)
