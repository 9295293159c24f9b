# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Processes that train, to be watched, stopped and killed by trials and tests."""

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ('free_port', 'join', 'kill', 'start', 'start_group')

#: Children are forked from a server that has imported everything.
_PROCESSES = multiprocessing.get_context('forkserver')
_PROCESSES.set_forkserver_preload(['soak.runs'])


def start(
    target: Callable[..., None],
    *arguments: Any,
    environment: dict[str, str] | None = None,
) -> Any:
    """Start a process.

    Args:
        target: What it runs, a function of a module.
        *arguments: Its arguments.
        environment: Variables to set first.

    Returns:
        The process.
    """
    process = _PROCESSES.Process(target=_run, args=(target, arguments, environment))
    process.start()
    return process


def start_group(
    size: int, target: Callable[..., None], *arguments: Any, **environment: str
) -> list[Any]:
    """Start the processes of one distributed run, as ``torchrun`` would.

    Args:
        size: Their number.
        target: What each runs.
        *arguments: Its arguments.
        **environment: Variables to set first.

    Returns:
        The processes, by rank.
    """
    known = {
        'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port()), 'NODE_RANK': '0',
        'WORLD_SIZE': str(size), **environment,
    }  # fmt: skip
    return [
        start(target, *arguments, environment={**known, 'LOCAL_RANK': str(rank)})
        for rank in range(size)
    ]


def free_port() -> int:
    """Find a port nobody listens on.

    Returns:
        Its number.
    """
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return int(found.getsockname()[1])


def join(processes: Sequence[Any], seconds: float) -> list[int | None]:
    """Wait for processes to end.

    Args:
        processes: The processes.
        seconds: How long at most; those still there then are killed.

    Returns:
        The exit status of each; None if it did not end.
    """
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    found = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            kill(process)
    return found


def kill(process: Any) -> None:
    """Kill a process and what it started.

    Args:
        process: The process.
    """
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        process.kill()
    process.join()


def _run(
    target: Callable[..., None],
    arguments: Sequence[Any],
    environment: dict[str, str] | None,
) -> None:
    """Run in a process group of its own, with workers that die with it.

    Workers are forked, as they are by default on Linux up to Python 3.13: those of a
    fork server, which this process came from, would outlive a kill.
    """
    os.setpgrp()
    if sys.platform == 'linux':
        # Nobody is left behind where a trial is stopped: PR_SET_PDEATHSIG.
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    os.environ.update(environment or {})
    multiprocessing.set_start_method('fork', force=True)
    target(*arguments)
