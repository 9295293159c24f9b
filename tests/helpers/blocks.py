# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What tasks of Dask did, also in other processes: they write lines to a file."""

import os
import time
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
from torch import nn


class Marker(nn.Module):
    """A part of a model that tells in which processes the model arrives."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _note(self.log, f'{os.getpid()}')


def logged(
    image: np.ndarray, side: int, log: Path, seconds: float = 0.0
) -> dask.array.Array:
    """A Dask array whose chunks ``(C, side, side)`` tell that they are loaded."""
    array = dask.array.from_array(image, (len(image), side, side))
    return array.map_blocks(_load, log=log, seconds=seconds, meta=array._meta)


def _load(
    block: np.ndarray, log: Path, seconds: float, block_id: tuple[int, ...]
) -> np.ndarray:
    time.sleep(seconds)
    _note(log, f'{os.getpid()} {block_id}')
    return block


def _note(log: Path, line: str) -> None:
    with log.open('a') as file:
        file.write(line + '\n')
