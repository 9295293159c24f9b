# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Write packs: shard by shard, so that an interrupted run goes on where it stood."""

import json
import shutil
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .._files import atomic_path, write_text
from .chip_saliency import ChipSaliency
from .pack_index import INDEX, PackIndex, Shard
from .pack_shards import PACKING, ChipStream, ShardWriter
from .shard_files import Moments, sha256

__all__ = ('check_pack', 'write_pack')


def write_pack(
    source: ChipStream,
    root: str | Path,
    shard_bytes: int = 2**29,
    num_workers: int = 0,
    saliency: bool = False,
) -> PackIndex:
    """Pack chips, or go on with a pack that was interrupted.

    Args:
        source: What chips come from.
        root: Folder of the pack; made if it is missing.
        shard_bytes: Largest size of a shard. Half of it is used where all values fit
            into 16 bits.
        num_workers: Number of processes, each of which writes a shard; 0 for this one.
        saliency: Whether to measure every chip by :class:`.ChipSaliency`.

    Returns:
        The index of the pack.

    Raises:
        OSError: If something cannot be read or written. What is finished stays, and
            the same call goes on.
        ValueError: If the folder holds something else, no chip has data, or the bands
            allow no index that saliency needs.
    """
    root, measure = Path(root), None
    settings = json.loads(json.dumps(source.settings))
    if saliency:
        settings['saliency'] = True
        measure = ChipSaliency(source.bands, source.scale, source.offset)
    writer = ShardWriter(source, root, measure)
    if (root / INDEX).exists():
        index = PackIndex.read(root)
        _compare(root, index.settings, settings)
        shutil.rmtree(root / PACKING, ignore_errors=True)
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
    per_shard = _prepare(root, settings, per_shard)
    ranges = {
        number: (start, min(start + per_shard, total or 0))
        for number, start in enumerate(range(0, total or 0, per_shard))
    }
    done = {number for number in ranges if writer.finished(number) is not None}
    with tqdm(
        total=total,
        desc='Packing',
        unit=' chips',
        initial=sum(ranges[n][1] - ranges[n][0] for n in done),
        disable=None,
    ) as bar:
        todo = [(n, *ranges[n]) for n in ranges if n not in done]
        shards = len(ranges)
        try:
            if total is None:
                shards = _pack_stream(writer, per_shard, bar.update)
            else:
                _pack_ranges(writer, todo, num_workers, bar.update)
        except OSError as error:
            finished = sum(
                writer.finished(int(path.stem)) is not None
                for path in (root / PACKING).glob('[0-9]*.json')
            )
            of = f' of {shards}' if shards else ''
            raise OSError(
                f'{error} {finished}{of} shards in {root} are finished and stay: run '
                'the same command to go on.'
            ) from error
    index = _finish(writer, shards, settings)
    shutil.rmtree(root / PACKING, ignore_errors=True)
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


def _prepare(root: Path, settings: dict[str, Any], per_shard: int) -> int:
    """Make the folder, or see that it holds the beginning of this pack.

    Returns the chips of a shard, which stay as they were.
    """
    state = root / PACKING / 'settings.json'
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


def _pack_ranges(
    writer: ShardWriter,
    todo: Sequence[tuple[int, int, int]],
    num_workers: int,
    advance: Callable[[int], Any],
) -> None:
    """Pack shards of known ranges, in this process or in several."""
    if not num_workers or len(todo) < 2:
        for job in todo:
            writer.write(*job, advance)
        return
    count = min(num_workers, len(todo))
    with ProcessPoolExecutor(count, initializer=_start, initargs=(writer,)) as pool:
        futures = {pool.submit(_pack_in_worker, *job): job for job in todo}
        try:
            for future in as_completed(futures):
                future.result()
                _, start, stop = futures[future]
                advance(stop - start)
        except BrokenProcessPool as error:
            raise OSError(
                'num_workers: a process died, probably because memory was short. Pass '
                f'fewer than {num_workers} workers.'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _pack_stream(
    writer: ShardWriter, per_shard: int, advance: Callable[[int], Any]
) -> int:
    """Pack shard after shard until one is not full, and return how many there are."""
    for number in count():
        start = number * per_shard
        if (note := writer.finished(number)) is None:
            writer.write(number, start, start + per_shard, advance)
            note = writer.finished(number)
        assert note is not None
        if not note['shard'] or note['shard']['count'] < per_shard:
            break
    return number + 1


_writer: list[ShardWriter] = []


def _start(writer: ShardWriter) -> None:
    """Give a process its writer."""
    torch.set_num_threads(1)
    _writer[:] = [writer]


def _pack_in_worker(number: int, start: int, stop: int) -> None:
    """Pack a shard in this process."""
    _writer[0].write(number, start, stop, lambda _: None)


def _finish(
    writer: ShardWriter, num_shards: int, settings: dict[str, Any]
) -> PackIndex:
    """Write the columns and, at last, the index."""
    source, root = writer.source, writer.root
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
        note = writer.finished(number)
        assert note is not None
        skipped.update(note['skipped'])
        if note['shard']:
            shards.append(Shard(**note['shard']))
            moments.merge(*map(np.array, note['moments']))
            for name, dtype in dtypes.items():
                # Lists of Python numbers are many times as large.
                values[name].append(np.array(note['columns'][name], dtype))
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
