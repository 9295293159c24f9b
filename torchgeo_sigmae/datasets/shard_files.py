# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The files of a pack as they are written, and the statistics of their chips."""

import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import torch

from .pack_index import MISSING
from .packed import decode

__all__ = ('Moments', 'ShardFile', 'sha256')

#: Length of the header of a shard: room for any number of chips, and a multiple of 64
#: as NumPy has it, so that chips are aligned.
_HEADER = 128

#: Chips are checked, and types changed, by so many bytes at a time.
_BLOCK = 2**24


class ShardFile:
    """Appends chips to a ``.npy`` file, in the smallest type that holds them all.

    The file is written by calls that report a full disk; a memory map would end the
    process.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        """Open *path* for chips of the shape ``(C, H, W)``."""
        self.count = 0
        self.dtype = next(iter(MISSING))
        self._path, self._shape = path, shape
        self._lowest, self._highest, self._integers = np.inf, -np.inf, True
        self._file = path.open('wb')
        self._file.write(bytes(_HEADER))

    def append(self, values: np.ndarray) -> None:
        """Append a chip, float32 with NaN where missing."""
        stored = self._exact(values)
        if stored is None:
            finite = np.isfinite(values)
            known = np.where(finite, values, 0)
            self._lowest = min(self._lowest, float(known.min()))
            self._highest = max(self._highest, float(known.max()))
            self._integers &= bool((np.rint(known) == known).all())
            self._choose_type()
            stored = np.ascontiguousarray(values)
            if self.dtype != 'float32':
                stored = known.astype(self.dtype)
                stored[~finite] = MISSING[self.dtype]
        self._file.write(stored)
        self.count += 1

    def _exact(self, values: np.ndarray) -> np.ndarray | None:
        """The usual case, fast: no missing value, and a type that has not to change."""
        if self.dtype == 'float32':
            return None
        with np.errstate(invalid='ignore'):
            stored = values.astype(self.dtype, order='C')
        low, high = stored.min(), stored.max()
        # The first chip chooses the type.
        if not self.count or MISSING[self.dtype] in (low, high):
            return None
        if not (stored == values).all():
            return None
        self._lowest = min(self._lowest, float(low))
        self._highest = max(self._highest, float(high))
        return stored

    def close(self) -> None:
        """Write the header, which holds the number of chips."""
        self._file.close()
        with self._path.open('rb+') as file:
            file.write(_header(self.dtype, (self.count, *self._shape)))

    def _choose_type(self) -> None:
        """Take a type that holds all values so far, and change those written."""
        fits = {
            'uint16': self._lowest >= 0 and self._highest < 65535,
            'int16': self._lowest > -32768 and self._highest < 32768,
        }
        dtype = next((d for d in fits if fits[d] and self._integers), 'float32')
        if dtype == self.dtype:
            return
        old, self.dtype = self.dtype, dtype
        if not self.count:
            return
        self._file.close()
        wide = self._path.with_name(f'{self._path.name}.wide')
        try:
            with self._path.open('rb') as narrow, wide.open('wb') as file:
                file.write(narrow.read(_HEADER))
                while block := narrow.read(_BLOCK):
                    stored = torch.from_numpy(np.frombuffer(block, old).copy())
                    values = decode(stored).numpy()
                    missing = np.isnan(values)
                    values[missing] = 0
                    changed = values.astype(dtype)
                    changed[missing] = MISSING[dtype]
                    file.write(changed)
            os.replace(wide, self._path)
        finally:
            wide.unlink(missing_ok=True)
        self._file = self._path.open('ab')


def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The header of a ``.npy`` file, version 1.0, of a fixed length."""
    text = repr({'descr': np.dtype(dtype).str, 'fortran_order': False, 'shape': shape})
    length = _HEADER - 10
    padded = f'{text:<{length - 1}}\n'.encode('latin1')
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', length) + padded


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


class Moments:
    """Mean and sum of squared deviations of every band, added up chip by chip."""

    def __init__(self, bands: int) -> None:
        """Start with no values of so many bands."""
        self.count, self.mean, self.m2 = np.zeros((3, bands))

    def add(self, values: np.ndarray) -> None:
        """Add the valid values of a chip ``(C, H, W)``.

        As for scenes, a pixel is missing where all its bands are 0, too.
        """
        flat = values.reshape(len(values), -1)
        low = flat.min(axis=0)
        if (low > 0).all() and np.isfinite(low).all() and np.isfinite(flat.max()):
            # The usual case, fast.
            count = np.full(len(flat), flat.shape[1], np.float64)
            # Sums in float64 take three times as long; centered, none is needed.
            middle = flat.mean(axis=1)
            centered = flat - middle[:, None]
            rest = centered.mean(axis=1).astype(np.float64)
            mean = middle + rest
            m2 = np.einsum('ij,ij->i', centered, centered) - count * rest**2
        else:
            valid = np.isfinite(flat)
            valid &= (np.where(valid, flat, 0) != 0).any(axis=0)
            known = np.where(valid, flat, 0).astype(np.float64)
            count = valid.sum(axis=1).astype(np.float64)
            mean = known.sum(axis=1) / np.maximum(count, 1)
            m2 = (np.where(valid, known - mean[:, None], 0) ** 2).sum(axis=1)
        self.merge(count, mean, m2)

    def merge(self, count: np.ndarray, mean: np.ndarray, m2: np.ndarray) -> None:
        """Add moments (Chan, Golub and LeVeque, 1983)."""
        total = np.maximum(self.count + count, 1)
        difference = mean - self.mean
        self.m2 = self.m2 + m2 + difference**2 * self.count * count / total
        self.mean = self.mean + difference * count / total
        self.count = self.count + count
