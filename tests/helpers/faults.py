# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What goes wrong while an image is read and its map written."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
from rasterio.windows import Window

from torchgeo_sigmae.datasets import RasterScene


@contextmanager
def failing_reads(at: int | None = None) -> Iterator[list[Window]]:
    """List the windows that are read; the *at*-th read is interrupted."""
    reads: list[Window] = []
    read = RasterScene.read

    def counted(self: RasterScene, window: Window) -> np.ndarray:
        reads.append(window)
        if len(reads) == at:
            raise KeyboardInterrupt
        return read(self, window)

    with mock.patch.object(RasterScene, 'read', counted):
        yield reads


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
