# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae pack``: chips of any data in files that are read at once."""

from pathlib import Path

from .pack_options import PackOptions

__all__ = ('pack',)


def pack(
    options: PackOptions,
    *,
    shard_size: float = 512,
    num_workers: int = 0,
    check: bool = False,
) -> list[Path]:
    """Pack scenes or a dataset for PackedDataModule, which reads them at once.

    After an interruption, the same command goes on. Values stay as they are read: in 16
    bits where they are such integers, else in float32.

    Args:
        options: What is packed, and how it is read.
        shard_size: Largest size of a file in MiB; half of it is used where values fit
            into 16 bits.
        num_workers: Number of processes, each of which writes a file; 0 for one.
        check: Compare the files of the pack SOURCE with their checksums, and pack
            nothing.

    Returns:
        The index of the pack.

    Raises:
        OSError: If something cannot be read or written, or a file of the pack is
            damaged.
        ValueError: If an argument is wrong, or the folder holds something else.
    """
    from ..datasets.pack_index import INDEX
    from ..datasets.packing import check_pack, write_pack
    from ..datasets.paths import clean_path, is_remote
    from .pack_source import open_source

    if check:
        if wrong := check_pack(options.source):
            raise OSError(f'{len(wrong)} files are damaged: {" ".join(wrong)}')
        print(f'All files of {options.source} are as they were packed.')
        return []
    if options.output is None:
        raise ValueError('output: not given. Pass the folder of the pack.')
    if is_remote(url := clean_path(options.output)):
        raise ValueError(
            f'output: {url} is remote. Pass a local folder, and copy it when it is '
            'written.'
        )
    if not shard_size > 0:
        raise ValueError(f'shard_size: {shard_size} must be positive, in MiB.')
    index = write_pack(
        open_source(options),
        options.output,
        int(shard_size * 2**20),
        num_workers,
        options.saliency,
    )
    size = sum(shard.bytes for shard in index.shards)
    print(
        f'{index.count} chips of {index.shape[1]} x {index.shape[2]} px and '
        f'{index.shape[0]} bands, {size / 2**30:.2f} GiB in {len(index.shards)} files.'
    )
    if index.skipped:
        print(f'Could not be read: {", ".join(index.skipped)}.')
    return [options.output / INDEX]
