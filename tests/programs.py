# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Programs that tests run, each in a child of a server that has imported torch."""

import os
import runpy
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from soak.children import join, start
from torchgeo_sigmae.evaluation import probes

ROOT = Path(__file__).parents[1]


def run(module: str, *arguments: object) -> str:
    """Run ``python -m module arguments`` from the repository.

    Args:
        module: Its name.
        *arguments: What it is called with.

    Returns:
        What it printed, without what it wrote to its standard error.

    Raises:
        AssertionError: If it does not end with status 0 within five minutes.
    """
    with TemporaryDirectory() as folder:
        said, told = Path(folder, 'stdout'), Path(folder, 'stderr')
        child = start(_program, module, [*map(str, arguments)], str(said), str(told))
        (status,) = join([child], 300)
        assert status == 0, f'{module}: status {status}\n{told.read_text()[-3000:]}'
        return said.read_text()


def _program(module: str, arguments: list[str], *streams: str) -> None:
    """Be this program: its arguments, its streams, its folder."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(ROOT)
    # Several threads on so little only get into each other's way.
    torch.set_num_threads(1)
    # The two that converge at once, of all that probes choose from.
    probes._STRENGTHS = (1e-4, 1e-3)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name='__main__', alter_sys=True)
