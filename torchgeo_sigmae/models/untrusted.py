# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What is checked of a stranger's file before anything is made of it.

Nothing in a file is executed: it holds tensors and plain values, which torch sees to.
Here is the rest. A file of a few bytes can claim to hold terabytes, or name a model of
billions of parameters; whoever believes that runs out of memory.
"""

import math
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import timm
import torch
from torch import Tensor

__all__ = ('check_archive', 'check_content', 'check_model', 'check_record')

#: How many times a tensor may be there: weights are tied now and then.
_SHARED = 8

#: Values, and letters of a text, that are no tensors.
_MOST_VALUES, _MOST_LETTERS = 10_000, 10_000

#: The largest that is believed, by argument. What tensors tell is compared with them.
_LARGEST = {
    'size': 8192,
    'patch_size': 1024,
    'in_channels': 10_000,
    'dates': 100,
    'cube_bands': 10_000,
    'decoder_dim': 65_536,
    'decoder_depth': 1000,
    'decoder_num_heads': 1024,
}

_KERNEL, _GROUPS = 'patch_embed.proj.weight', 'patch_embed.band_group'


def check_archive(file: str | Path | BinaryIO) -> None:
    """Refuse what torch does not write: packed archives, and those larger than a file.

    Args:
        file: A path, or an open file, whose position is kept.

    Raises:
        ValueError: If it is not an archive as torch writes it.
    """
    if isinstance(file, str | Path):
        size = os.path.getsize(file)
    else:
        place = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(place)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f'no archive of torch.save: {error}') from error
    finally:
        if not isinstance(file, str | Path):
            file.seek(place)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError('packed, which torch.save does not do')
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise ValueError(f'{claimed} bytes claimed in a file of {size}')


def check_content(content: object) -> None:
    """Refuse tensors that claim to be larger than what the file held.

    Args:
        content: What was read.

    Raises:
        ValueError: If they do.
    """
    seen: set[int] = set()
    held: dict[int, int] = {}
    claimed, waiting = 0, [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_meta or value.is_nested:
                raise ValueError(f'a tensor that is not dense ({value.layout})')
            storage = value.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            claimed += value.numel() * value.element_size()
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    if claimed > _SHARED * sum(held.values()) + 2**20:
        raise ValueError(
            f'tensors of {claimed} bytes are claimed, {sum(held.values())} are there'
        )


def check_record(
    known: Mapping[str, Any], state_dict: Mapping[str, Any], name: str
) -> None:
    """Refuse what cannot be true of an encoder.

    Args:
        known: Its ``hyper_parameters``, or the arguments of a task.
        state_dict: Its tensors under plain timm keys.
        name: What to call the file in errors.

    Raises:
        ValueError: If something is not what it should be; the message names it.
    """
    try:
        _check_plain(known)
        _check_numbers(known)
        _check_bands(known)
        _check_tensors(known, state_dict)
    except ValueError as error:
        raise ValueError(
            f'weights: {name!r} cannot be what it claims to be: {error}. Pass a file '
            'made by SIGMAETask.export.'
        ) from error


def check_model(model: str, state_dict: Mapping[str, Tensor], name: str) -> None:
    """Refuse a model that is far larger than the tensors that are there for it.

    Args:
        model: The timm name a file tells.
        state_dict: The tensors of the file under plain timm keys.
        name: What to call the file in errors.

    Raises:
        ValueError: If timm knows no such model, or it is far larger.
    """
    if not timm.is_model(model):
        raise ValueError(
            f'weights: {name!r} is for model={model!r}, which timm does not know. Pass '
            'a file made by SIGMAETask.export.'
        )
    with torch.device('meta'):
        parameters = timm.create_model(model, num_classes=0).parameters()
    wanted = sum(parameter.numel() for parameter in parameters)
    held = sum(value.numel() for value in state_dict.values())
    # Positions and the first layer differ with images and bands.
    if wanted > 2 * held + 10**8:
        raise ValueError(
            f'weights: {name!r} holds {held} numbers for model={model!r}, which takes '
            f'{wanted}. Pass a file made by SIGMAETask.export.'
        )


def _check_plain(known: Mapping[str, Any]) -> None:
    """Refuse more values than an encoder has, however they are nested or repeated."""
    waiting: list[Any] = [known]
    for count in range(_MOST_VALUES):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, str | bytes) and len(value) > _MOST_LETTERS:
            raise ValueError(
                f'a text of {len(value)} letters, which starts {value[:9]!r}'
            )
        elif isinstance(value, int) and abs(value) > 2**63:
            raise ValueError('a whole number of more than 64 bits')
        if len(waiting) + count > _MOST_VALUES:
            break
    raise ValueError(f'more than {_MOST_VALUES} values')


def _check_numbers(known: Mapping[str, Any]) -> None:
    """Refuse numbers out of any range."""
    if not isinstance(known.get('model', ''), str):
        raise ValueError('model is not a name')
    for key, largest in _LARGEST.items():
        value = known.get(key)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= largest:
            raise ValueError(f'{key}={value!r} is not a whole number of 1 to {largest}')
    for key in ('scale', 'offset'):
        if known.get(key) is not None:
            _check_finite(key, [known[key]])


def _check_bands(known: Mapping[str, Any]) -> None:
    """Refuse bands that are no names, and statistics that are not those of bands."""
    bands = known.get('bands')
    if bands is not None and not (
        isinstance(bands, list | tuple) and all(isinstance(band, str) for band in bands)
    ):
        raise ValueError('bands are not a list of names')
    for key in ('mean', 'std'):
        values = known.get(key)
        if values is None:
            continue
        if isinstance(values, Tensor):
            values = values.tolist()
        values = values if isinstance(values, list | tuple) else [values]
        # Bands that were matched to others have none.
        numbers = [value for value in values if value is not None]
        _check_finite(key, numbers)
        if key == 'std' and not all(numbers):
            raise ValueError('std is 0')
        # Of a task, they are those of its data, of which there may be more.
        if bands and 'patch_size' in known and len(values) not in {1, len(bands)}:
            raise ValueError(f'{key} has {len(values)} values for {len(bands)} bands')


def _check_finite(key: str, values: Iterable[Any]) -> None:
    """Refuse what is not a number."""
    for value in values:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f'{key}={value!r} is not a finite number')


def _check_tensors(known: Mapping[str, Any], state_dict: Mapping[str, Any]) -> None:
    """Refuse claims that the tensors do not bear out."""
    if not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError('state_dict holds something else than tensors')
    kernel, groups = state_dict.get(_KERNEL), state_dict.get(_GROUPS)
    spectrum, positions = state_dict.get('spectral_embed'), state_dict.get('pos_embed')
    if kernel is not None and (kernel.ndim not in {4, 5} or 0 in kernel.shape):
        raise ValueError(f'{_KERNEL} of shape {tuple(kernel.shape)}')
    for key, value in (('spectral_embed', spectrum), ('pos_embed', positions)):
        if value is not None and (value.ndim != 3 or 0 in value.shape):
            raise ValueError(f'{key} of shape {tuple(value.shape)}')
    if groups is not None and (
        groups.ndim != 1
        or groups.is_floating_point()
        or not 0 < len(groups) <= _LARGEST['in_channels']
        or not (
            groups.is_meta or 0 <= int(groups.min()) <= int(groups.max()) < len(groups)
        )
    ):
        raise ValueError(f'{_GROUPS} does not number the groups of bands')
    if kernel is None:
        return
    patch = known.get('patch_size')
    if patch is not None and patch != kernel.shape[-1]:
        raise ValueError(
            f'patch_size={patch} with patches of {kernel.shape[-1]} pixels'
        )
    places = (known.get('size') or 0) // kernel.shape[-1]
    if positions is not None and places**2 > positions.shape[1]:
        raise ValueError(
            f'size={known["size"]} with positions of {positions.shape[1]} patches'
        )
