# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Write packs: shard by shard, so that an interrupted run goes on where it stood."""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import (
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from .._files import atomic_path, write_text
from ..bands import BandSet
from .chip_saliency import ChipSaliency
from .pack_index import INDEX, PackIndex, Shard
from .shard_files import Moments, ShardFile, sha256

__all__ = ('Chip', 'ChipSource', 'ChipStream', 'check_pack', 'write_pack')

#: Folder of what is known of finished shards, until the index is written.
_PACKING = 'packing'

#: So many chips are read before the first of them is appended.
_AHEAD = 8


class Chip(NamedTuple):
    """A chip to be packed.

    Attributes:
        values: Raw values in float32 ``(C, H, W)``, NaN where missing.
        source: Index of its source.
        window: First row and column in the file of the source.
        label: A number or a vector; None if there is none.
    """

    values: np.ndarray
    source: int
    window: tuple[int, int] = (0, 0)
    label: np.ndarray | None = None


class ChipStream(Protocol):
    """What chips come from, in order.

    Attributes:
        bands: The bands, in order.
        shape: Channels, height and width of a chip.
        scale: Reflectance = value x scale + offset.
        offset: Reflectance at 0.
        sources: What chips are cut from, see :class:`.PackIndex`.
        settings: What decides about the chips; a pack is resumed with the same only.
            ``saliency=True`` asks for :class:`.ChipSaliency` of every chip.
    """

    bands: BandSet
    shape: tuple[int, int, int]
    scale: float
    offset: float
    sources: list[dict[str, Any]]
    settings: dict[str, Any]

    def read(self, start: int, stop: int, skipped: set[str]) -> Iterator[Chip | None]:
        """Read a range of chips; None for one that is left out.

        The names of files that cannot be read are added to *skipped*.
        """


class ChipSource(ChipStream, Protocol):
    """What any range of chips can be read from; processes get copies."""

    def __len__(self) -> int:
        """Number of chips, with those that are left out."""


def write_pack(
    source: ChipStream,
    root: str | Path,
    shard_bytes: int = 2**29,
    num_workers: int = 0,
) -> PackIndex:
    """Pack chips, or go on with a pack that was interrupted.

    Args:
        source: What chips come from.
        root: Folder of the pack; made if it is missing.
        shard_bytes: Largest size of a shard. Half of it is used where all values fit
            into 16 bits.
        num_workers: Number of processes, each of which writes a shard; 0 for this one.

    Returns:
        The index of the pack.

    Raises:
        OSError: If something cannot be read or written. What is finished stays, and
            the same call goes on.
        ValueError: If the folder holds something else, or no chip has data.
    """
    root = Path(root)
    parts = root / _PACKING
    settings = json.loads(json.dumps(source.settings))
    # Bands that allow no index are told before anything is read.
    _chip_saliency(source)
    if (root / INDEX).exists():
        index = PackIndex.read(root)
        _compare(root, index.settings, settings)
        shutil.rmtree(parts, ignore_errors=True)
        return index
    per_shard = max(shard_bytes // (4 * int(np.prod(source.shape))), 1)
    total = len(source) if isinstance(source, Sized) else None
    if total is not None:
        # A shard for every process, at least.
        per_shard = min(per_shard, -(-total // max(num_workers, 1)))
    elif num_workers:
        raise ValueError(
            f'num_workers: {num_workers}, but a stream is read in order, by one '
            'process. Pass 0.'
        )
    per_shard = _prepare(root, parts, settings, per_shard)
    ranges = {
        number: (start, min(start + per_shard, total or 0))
        for number, start in enumerate(range(0, total or 0, per_shard))
    }
    done = {number for number in ranges if _finished(root, parts, number) is not None}
    with tqdm(
        total=total,
        desc='Packing',
        unit=' chips',
        initial=sum(ranges[n][1] - ranges[n][0] for n in done),
        disable=None,
    ) as bar:
        todo = [(root, n, *ranges[n]) for n in ranges if n not in done]
        shards = len(ranges)
        try:
            if total is None:
                shards = _pack_stream(source, root, parts, per_shard, bar.update)
            else:
                _run(source, todo, num_workers, bar.update)
        except OSError as error:
            finished = sum(
                _finished(root, parts, int(path.stem)) is not None
                for path in parts.glob('[0-9]*.json')
            )
            of = f' of {shards}' if shards else ''
            raise OSError(
                f'{error} {finished}{of} shards in {root} are finished and stay: run '
                'the same command to go on.'
            ) from error
    index = _finish(source, root, parts, shards, settings)
    shutil.rmtree(parts, ignore_errors=True)
    return index


def check_pack(root: str | Path) -> list[str]:
    """Compare all files of a pack with the checksums of its index.

    Args:
        root: Folder of the pack.

    Returns:
        One line for each file that is missing or damaged; empty if the pack is sound.

    Raises:
        FileNotFoundError: If there is no pack.
        ValueError: If the index is damaged or of another version.
    """
    index, root = PackIndex.read(root), Path(root)
    wrong = []
    total = sum(shard.bytes for shard in index.shards)
    with tqdm(
        total=total, desc='Checking', unit='B', unit_scale=True, disable=None
    ) as bar:
        for shard in index.shards:
            path = root / shard.file
            if not path.is_file():
                wrong.append(f'{path} is missing.')
            elif (size := path.stat().st_size) != shard.bytes:
                wrong.append(f'{path} has {size} bytes instead of {shard.bytes}.')
            elif sha256(path) != shard.sha256:
                wrong.append(f'{path} has another checksum than when it was packed.')
            bar.update(shard.bytes)
    for file in index.columns.values():
        path = root / file
        if not path.is_file():
            wrong.append(f'{path} is missing.')
        elif sha256(path) != index.checksums[file]:
            wrong.append(f'{path} has another checksum than when it was packed.')
    return wrong


def _prepare(root: Path, parts: Path, settings: dict[str, Any], per_shard: int) -> int:
    """Make the folder, or see that it holds the beginning of this pack.

    Returns the chips of a shard, which stay as they were.
    """
    state = parts / 'settings.json'
    if state.is_file():
        stored = json.loads(state.read_text(encoding='utf-8'))
        _compare(root, stored['settings'], settings)
        per_shard = stored['per_shard']
    elif root.exists() and any(root.iterdir()):
        raise ValueError(
            f'output: {root} is not empty and no pack. Pass a folder that is empty or '
            'does not exist.'
        )
    write_text(state, json.dumps({'settings': settings, 'per_shard': per_shard}))
    # What a kill left half written.
    for half in root.glob('.*.part*'):
        half.unlink()
    return per_shard


def _compare(root: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to go on with a pack of other data."""
    names = sorted(
        name
        for name in stored.keys() | settings
        if stored.get(name) != settings.get(name)
    )
    if not names:
        return
    changes = '; '.join(
        f'{name} was {_short(stored.get(name))}, is {_short(settings.get(name))}'
        for name in names
    )
    raise ValueError(
        f'output: {root} holds another pack: {changes}. Choose another folder, or '
        'remove it.'
    )


def _short(value: object) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) < 80 else f'{text[:76]}...'


def _finished(root: Path, parts: Path, number: int) -> dict[str, Any] | None:
    """What is known of a shard that was written to the end."""
    try:
        manifest = json.loads((parts / f'{number:05}.json').read_text(encoding='utf-8'))
        shard = manifest['shard']
        if shard and (root / shard['file']).stat().st_size != shard['bytes']:
            return None
    except (KeyError, OSError, TypeError, ValueError):
        return None
    return dict(manifest)


def _run(
    source: ChipStream,
    todo: Sequence[tuple[Path, int, int, int]],
    num_workers: int,
    advance: Callable[[int], Any],
) -> None:
    """Pack shards, in this process or in several."""
    if not num_workers or len(todo) < 2:
        for job in todo:
            _pack_shard(source, *job, advance)
        return
    count = min(num_workers, len(todo))
    with ProcessPoolExecutor(count, initializer=_start, initargs=(source,)) as pool:
        futures = {pool.submit(_pack_in_worker, *job): job for job in todo}
        try:
            for future in as_completed(futures):
                future.result()
                _, _, start, stop = futures[future]
                advance(stop - start)
        except BrokenProcessPool as error:
            raise OSError(
                'num_workers: a process died, probably because memory was short. Pass '
                f'fewer than {num_workers} workers.'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _pack_stream(
    source: ChipStream,
    root: Path,
    parts: Path,
    per_shard: int,
    advance: Callable[[int], Any],
) -> int:
    """Pack shard after shard until one is not full, and return how many there are."""
    for number in count():
        start = number * per_shard
        if (manifest := _finished(root, parts, number)) is None:
            _pack_shard(source, root, number, start, start + per_shard, advance)
            manifest = _finished(root, parts, number)
        assert manifest is not None
        if not manifest['shard'] or manifest['shard']['count'] < per_shard:
            break
    return number + 1


_source: list[ChipStream] = []


def _start(source: ChipStream) -> None:
    """Give a process its source."""
    torch.set_num_threads(1)
    _source[:] = [source]


def _pack_in_worker(root: Path, number: int, start: int, stop: int) -> None:
    """Pack a shard from the source of this process."""
    _pack_shard(_source[0], root, number, start, stop, lambda _: None)


def _pack_shard(
    source: ChipStream,
    root: Path,
    number: int,
    start: int,
    stop: int,
    advance: Callable[[int], Any],
) -> None:
    """Write a shard, then what is known of it."""
    path = root / f'shard-{number:05}.npy'
    saliency = _chip_saliency(source)
    moments, skipped = Moments(source.shape[0]), set[str]()
    columns: dict[str, list[Any]] = {
        name: [] for name in ('source', 'window', 'label', 'saliency')
    }
    shard = None

    def append(chip: Chip) -> None:
        file.append(chip.values)
        moments.add(chip.values)
        columns['source'].append(chip.source)
        columns['window'].append(list(chip.window))
        if chip.label is not None:
            columns['label'].append(chip.label.tolist())
        if saliency is not None:
            columns['saliency'].append(saliency(chip.values))

    try:
        with atomic_path(path, 'output', remedy='Is there space?') as part:
            file = ShardFile(part, source.shape)
            # GDAL and NumPy let another thread work: chips are appended while others
            # are read.
            with closing(file), ThreadPoolExecutor(1) as thread:
                waiting: deque[Future[None]] = deque()
                for chip in _read(source, start, stop, skipped):
                    advance(1)
                    if chip is not None:
                        waiting.append(thread.submit(append, chip))
                    if len(waiting) > _AHEAD:
                        waiting.popleft().result()
                for future in waiting:
                    future.result()
    except _ReadError as error:
        raise error.args[0] from None
    if file.count:
        size = path.stat().st_size
        shard = asdict(Shard(path.name, file.count, file.dtype, size, sha256(path)))
    else:
        path.unlink()
    manifest = {
        'shard': shard,
        'columns': columns,
        'moments': [moments.count.tolist(), moments.mean.tolist(), moments.m2.tolist()],
        'skipped': sorted(skipped),
    }
    write_text(root / _PACKING / f'{number:05}.json', json.dumps(manifest))


def _chip_saliency(source: ChipStream) -> ChipSaliency | None:
    """What measures saliency, if the settings ask for it."""
    if not source.settings.get('saliency'):
        return None
    return ChipSaliency(source.bands, source.scale, source.offset)


class _ReadError(Exception):
    """Chips cannot be read, which is no failure of the file that is written."""


def _read(
    source: ChipStream, start: int, stop: int, skipped: set[str]
) -> Iterator[Chip | None]:
    """Read chips; their errors are told apart from those of writing."""
    try:
        yield from source.read(start, stop, skipped)
    except OSError as error:
        raise _ReadError(error) from error


def _finish(
    source: ChipStream,
    root: Path,
    parts: Path,
    num_shards: int,
    settings: dict[str, Any],
) -> PackIndex:
    """Write the columns and, at last, the index."""
    shards, skipped = [], set[str]()
    moments = Moments(source.shape[0])
    dtypes = {
        'source': 'int32',
        'window': 'int32',
        'label': None,
        'saliency': 'float32',
    }
    values: dict[str, list[np.ndarray]] = {name: [] for name in dtypes}
    for number in range(num_shards):
        manifest = _finished(root, parts, number)
        assert manifest is not None
        skipped.update(manifest['skipped'])
        if manifest['shard']:
            shards.append(Shard(**manifest['shard']))
            moments.merge(*map(np.array, manifest['moments']))
            for name, dtype in dtypes.items():
                # Lists of Python numbers are many times as large.
                values[name].append(np.array(manifest['columns'][name], dtype))
    count = sum(shard.count for shard in shards)
    if not count or not moments.count.any():
        raise ValueError(
            'source: no chip has data. Look at bands, nodata and min_valid.'
        )
    columns, checksums = {}, {}
    for name, chunks in values.items():
        # Labels are kept if all chips have one.
        if sum(map(len, chunks)) == count:
            columns[name] = f'{name}.npy'
            with atomic_path(root / columns[name]) as part:
                np.save(part, np.concatenate(chunks))
            checksums[columns[name]] = sha256(root / columns[name])
    std = np.sqrt(moments.m2 / np.maximum(moments.count, 1))
    index = PackIndex(
        source.bands,
        source.shape,
        count,
        source.scale,
        source.offset,
        moments.mean.tolist(),
        std.tolist(),
        tuple(shards),
        columns,
        checksums,
        source.sources,
        settings,
        sorted(skipped),
    )
    write_text(root / INDEX, index.to_json())
    return index
