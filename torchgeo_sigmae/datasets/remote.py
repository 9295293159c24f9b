# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Packs on object storage or the web, fetched file by file into a local folder.

fsspec reads the store, but its caches do not serve: none has a size limit,
``simplecache`` takes what a killed download leaves for the whole file, and
``filecache`` is not safe when several processes use it.
"""

import errno
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.registry import known_implementations  # type: ignore[import-untyped]

from .pack_index import INDEX, PackIndex
from .paths import clean_path

__all__ = ('RemotePack',)

#: Largest number of shards that are mixed: so many are fetched before the first steps.
_MIXED = 16

#: Seconds to wait after each failure.
_WAITS = (1.0, 4.0, 16.0, 64.0)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RemotePack:
    """The files of a remote pack, with local copies that all processes share.

    Attributes:
        root: URL of the pack.
        index: Its index, read anew every time: another pack has another folder.
        folder: Folder of the copies.
        mixed: Number of shards whose chips are mixed; None if the cache holds them all.
            The next as many, and those of validation, fit in beside them.
        pinned: Names of shards to remove last.
    """

    def __init__(
        self,
        root: str | Path,
        cache: str | Path | None = None,
        cache_size: float | None = None,
    ) -> None:
        """Read the index; see :class:`.PackedDataModule` for the arguments."""
        self.root = clean_path(root).rstrip('/')
        index = self._read_index()
        self.index = PackIndex.from_json(index, f'{self.root}/{INDEX}')
        self.pinned: frozenset[str] = frozenset()
        self._bytes = {shard.file: shard.bytes for shard in self.index.shards}
        self._checksums = self.index.checksums | {
            shard.file: shard.sha256 for shard in self.index.shards
        }
        largest, total = max(self._bytes.values()), sum(self._bytes.values())
        self._limit = total if cache_size is None else int(cache_size * 2**30)
        if self._limit < largest:
            raise ValueError(
                f'cache_size: {cache_size} GiB, but a shard of {self.root} has '
                f'{largest / 2**30:.3g} GiB. Pass cache_size='
                f'{3 * largest / 2**30:.3g} or more, or None for no limit.'
            )
        self.mixed: int | None = None
        if self._limit < total:
            self.mixed = min(max(self._limit // largest // 3, 1), _MIXED)
        self.folder = Path(
            cache or Path(torch.hub.get_dir(), 'packs'),
            hashlib.sha256(index).hexdigest()[:16],
        )
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, file: str, patient: bool = True) -> Path:
        """Return the path of the copy of a file, which is fetched if there is none.

        Args:
            file: Name of the file.
            patient: Whether to try several times.

        Raises:
            OSError: If the file cannot be fetched.
        """
        path = self.folder / file
        while not self._present(path):
            # One file at a time: backends of object storage fetch parts in parallel.
            # While it waits, it looks again: another process may have fetched the file.
            with suppress(Timeout), FileLock(self.folder / '.lock', timeout=0.1):
                if not self._present(path):
                    self._fetch(path, (*_WAITS, None) if patient else (None,))
        return path

    def follow(
        self, order: np.ndarray, files: Sequence[str], first: Sequence[int]
    ) -> Iterator[int]:
        """Yield the items of *order*, and fetch files in the background.

        Args:
            order: What to yield.
            files: Files in the order in which they are used, also after *order*.
            first: When each of them is used first: a position in *order*.
        """
        allowed, stopped = Semaphore((self.mixed or len(files)) + 1), Event()

        def fetch() -> None:
            for file in files:
                allowed.acquire()
                if stopped.is_set():
                    return
                # The first use of the file tries again, and reports the error.
                with suppress(Exception):
                    self.path(file, patient=False)
                # Longer than others wait before they try the lock again.
                time.sleep(0.06)

        Thread(target=fetch, daemon=True).start()
        begins = [place for place in first if place < len(order)]
        try:
            for start, stop in pairwise([*begins, len(order)]):
                yield from order[start:stop]
                allowed.release()
        finally:
            stopped.set()
            allowed.release()

    def _present(self, path: Path) -> bool:
        """Whether there is a copy, which counts as used now."""
        try:
            os.utime(path)
            size = path.stat().st_size
        except FileNotFoundError:
            return False
        return size == self._bytes.get(path.name, size)

    def _fetch(self, path: Path, waits: Sequence[float | None]) -> None:
        """Fetch a file, whole or not at all; the caller has the lock.

        After each failure there is a wait, and None after the last.
        """
        part, url = self.folder / 'part', f'{self.root}/{path.name}'
        for wait in waits:
            try:
                self._make_room(part, self._bytes.get(path.name, 0))
                self._download(path.name, part)
                os.replace(part, path)
                return
            # Every store has errors of its own.
            except Exception as error:
                reason = f'{type(error).__name__}: {error}'
                if getattr(error, 'errno', None) in _FULL:
                    raise OSError(
                        f'cache: {path} cannot be written: {reason}. Free disk space, '
                        f'or pass a smaller cache_size or another cache. {_RESUME}'
                    ) from error
                gone = isinstance(error, FileNotFoundError | PermissionError)
                if wait is None or gone:
                    raise OSError(
                        f'{url} cannot be fetched: {reason}. Check the connection and '
                        f'the store. {_RESUME}'
                    ) from error
            finally:
                part.unlink(missing_ok=True)
            _LOGGER.warning('%s: %s. Next trial in %s s.', url, reason, wait)
            time.sleep(wait)

    def _make_room(self, part: Path, size: int) -> None:
        """Remove what a kill has left, and the shards that were not used lately."""
        part.unlink(missing_ok=True)
        shards = [
            path for path in map(self.folder.joinpath, self._bytes) if path.exists()
        ]
        used = sum(path.stat().st_size for path in shards)
        shards.sort(key=lambda path: (path.name in self.pinned, path.stat().st_mtime))
        while size and shards and used + size > self._limit:
            used -= shards[0].stat().st_size
            shards.pop(0).unlink()

    def _download(self, file: str, part: Path) -> None:
        """Fetch a file, and compare it with its checksum."""
        store, root = self._open()
        store.get_file(f'{root}/{file}', str(part))
        with part.open('rb') as content:
            checksum = hashlib.file_digest(content, 'sha256').hexdigest()
        if checksum != self._checksums[file]:
            raise OSError(
                f'it came damaged: {part.stat().st_size} bytes with another checksum '
                'than when it was packed'
            )

    def _read_index(self) -> bytes:
        """Fetch the index, without a second trial: the URL may be wrong."""
        store, root = self._open()
        try:
            return bytes(store.cat_file(f'{root}/{INDEX}'))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'root: there is no pack at {self.root}: it has no {INDEX}. Pass the '
                'URL of a folder that torchgeo-sigmae pack has written.'
            ) from error
        except Exception as error:
            raise OSError(
                f'root: {self.root}/{INDEX} cannot be read: {type(error).__name__}: '
                f'{error}. Check the URL, the connection and your credentials.'
            ) from error

    def _open(self) -> tuple[Any, str]:
        """The store of this process, and the path of the pack in it."""
        protocol = self.root.partition('://')[0]
        options: dict[str, Any] = {}
        if protocol in ('http', 'https'):
            from aiohttp import ClientTimeout

            # By default a file that takes five minutes fails.
            timeout = ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options = {'client_kwargs': {'timeout': timeout}}
        try:
            store, root = url_to_fs(self.root, **options)
        except ImportError as error:
            package = known_implementations[protocol]['class'].partition('.')[0]
            raise ImportError(
                f'root: {self.root} needs a package: {error}. Run pip install '
                f'{package}.'
            ) from error
        except ValueError as error:
            raise ValueError(
                f'root: {self.root} cannot be opened: {error}. Pass a local folder, or '
                'a URL such as s3://bucket/pack.'
            ) from error
        return store, root


_LOGGER = logging.getLogger(__name__)

_RESUME = 'Then run the same command again: it goes on from its last checkpoint.'
