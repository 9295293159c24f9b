# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The file format of weights.

``{'hyper_parameters': {'model': name, ...}, 'state_dict': {'model.<key>': tensor}}`` is
the format that TorchGeo's ``extract_backbone`` reads, so one file serves ``weights=``
of every TorchGeo task and of ours. A decoder is stored under ``decoder.<key>``.

A Lightning checkpoint of our task stores the encoder and the decoder under the same
keys. Its ``hyper_parameters`` are the arguments of the task; the information about the
encoder is stored under ``'encoder'``.

An exported folder holds the same in the format of timm and the Hugging Face Hub, see
:mod:`.folder`.

Files hold tensors and plain values only. Nothing in them is executed, and they are
checked for size and plausibility before anything is built from them.
"""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .._files import atomic_path
from ..bands import BandSet, Sensor
from .folder import is_export, is_folder, read_export, write_export
from .schema import check_model, check_weights

__all__ = (
    'ENCODER_KEY',
    'Weights',
    'atomic_save',
    'check_task',
    'from_checkpoint_keys',
    'load_plain',
    'plain',
    'read_file',
    'to_checkpoint_keys',
    'write_weights',
)

_ENCODER, _DECODER = 'model.', 'decoder.'

#: Where a training checkpoint stores the information about its encoder.
ENCODER_KEY = 'encoder'

#: Prefixes in the state dict of our task, and in a file.
_PARTS = (('model.encoder.', _ENCODER), ('model.decoder.', _DECODER))

#: What ``torch.compile`` and ``DistributedDataParallel`` add to keys.
_WRAPPERS = {'_orig_mod', 'module'}


@dataclass(frozen=True, eq=False)
class Weights:
    """Pretrained tensors and the information needed to use them.

    Attributes:
        encoder: Tensors of the encoder under plain timm keys, in single precision.
        decoder: Tensors of the decoder; empty if there is none.
        info: ``model``, ``bands``, ``sensor``, ``mean``, ``std``, ``size``,
            ``patch_size``, ``norm_pix_loss`` and more, as plain Python values.
        name: The path or the enum, for messages.
    """

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    name: str = 'weights'

    @property
    def bands(self) -> BandSet | None:
        """The bands that the encoder takes; None where the file does not say."""
        names = self.info.get('bands')
        if not names:
            return None
        try:
            return BandSet.from_data(names, self.info.get('sensor'))
        except ValueError:
            # The first edition stored only the name of a user's own sensor.
            return BandSet.from_data(names, 'any')


def write_weights(weights: Weights, path: str | Path, half: bool = False) -> None:
    """Write weights to a file, or to a folder for timm, atomically.

    Args:
        weights: The weights; ``info['model']``, the timm name, is required.
        path: The file; or an existing folder or a path without a suffix, which becomes
            a folder with ``config.json``, ``model.safetensors`` and a model card.
            Missing folders are created.
        half: Store in half precision, which halves the file.
    """
    if 'model' not in weights.info:
        raise ValueError(
            "info: 'model' is missing. Add the timm name of the encoder; TorchGeo "
            'reads it.'
        )
    encoder, decoder = (
        {_unwrapped(key): _stored(value, half) for key, value in tensors.items()}
        for tensors in (weights.encoder, weights.decoder)
    )
    info = plain(weights.info)
    if is_folder(path):
        write_export(path, info, encoder, decoder)
        return
    state_dict = {
        f'{prefix}{key}': value
        for prefix, tensors in ((_ENCODER, encoder), (_DECODER, decoder))
        for key, value in tensors.items()
    }
    atomic_save({'hyper_parameters': info, 'state_dict': state_dict}, path)


def read_file(file: str | Path | BinaryIO, name: str) -> Weights:
    """Read a file or folder in our format; *name* is for messages.

    Checkpoints of TorchGeo's own tasks are read as well, without their heads and
    segmentation decoders.
    """
    if isinstance(file, str | Path) and is_export(file):
        return _checked(*read_export(file, name), name)
    return _parsed(_content(file, name), name)


def load_plain(file: str | Path | BinaryIO) -> Any:
    """Load tensors and plain values from a file that ``torch.save`` wrote, on the CPU.

    Raises:
        ValueError: If the file holds anything else, is damaged, or would become larger
            than it is.
    """
    try:
        _check_archive(file)
        return torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:
        # Damaged bytes are a program to an unpickler; it fails with errors of any type.
        raise ValueError(f'{type(error).__name__}: {error}') from error


def atomic_save(content: object, path: str | Path) -> None:
    """Save with ``torch.save``; a crash leaves the old file or the new one."""
    # torch raises RuntimeError if a disk is full.
    with atomic_path(path, 'path', (RuntimeError,)) as part, part.open('wb') as file:
        torch.save(content, file)


def to_checkpoint_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Rename tensors of our task, the encoder's to ``model.<timm key>``."""
    return _renamed(state_dict, _PARTS)


def from_checkpoint_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`to_checkpoint_keys`."""
    return _renamed(state_dict, tuple((new, old) for old, new in _PARTS))


def check_task(path: str | Path) -> dict[str, Any]:
    """Read the arguments of a training checkpoint of ours; refuse any other file."""
    content = _content(path, str(path))
    weights, arguments = _parsed(content, str(path)), content['hyper_parameters']
    if 'decoder_depth' not in arguments:
        raise ValueError(
            f'checkpoint_path: {str(path)!r} is no training checkpoint of SIGMAETask. '
            'Pass one, or pass the file to weights=.'
        )
    check_weights(arguments, weights.encoder, weights.decoder, weights.name)
    check_model(arguments['model'], weights.encoder, weights.name)
    return dict(arguments)


def plain(value: Any) -> Any:
    """Replace NumPy values, paths, enums, sensors and dataclasses by plain values."""
    match value:
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case tuple():
            return tuple(plain(item) for item in value)
        case np.ndarray() | np.generic():
            return value.tolist()
        case Path() | Enum():
            return str(value)
        case BandSet():
            return list(value)
        case Sensor():
            return value.plain()
        case _ if is_dataclass(value):
            return {
                f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init
            }
        case _:
            return value


def _content(file: str | Path | BinaryIO, name: str) -> Any:
    """Load a file, with an error that says what to pass instead."""
    try:
        return load_plain(file)
    except ValueError as error:
        raise ValueError(
            f'weights: {name!r} cannot be read as tensors and plain values, and '
            'anything else is not loaded from a file. Pass a file made by '
            'SIGMAETask.export.'
        ) from error


def _parsed(content: Any, name: str) -> Weights:
    """Find encoder, decoder and information in the content of a file."""
    try:
        arguments = content['hyper_parameters']
        info = dict(content.get(ENCODER_KEY, arguments))
        if 'decoder_num_heads' in arguments:
            info.setdefault('decoder_num_heads', arguments['decoder_num_heads'])
        tensors = {_unwrapped(k): v for k, v in content['state_dict'].items()}
        dense = arguments.get('backbone')
        info['model'] = dense or info['model']
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f'weights: {name!r} is not an encoder file: it needs '
            "'hyper_parameters' with a 'model' and a 'state_dict'. Pass a file made by "
            'SIGMAETask.export.'
        ) from error
    if dense:
        # A segmentation task of TorchGeo, whose decoder is none of ours.
        tensors = {k: v for k, v in tensors.items() if k.startswith('model.encoder.')}
    tensors = to_checkpoint_keys(tensors)
    encoder, decoder = (
        {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix) and not key.startswith('model.head.')
        }
        for prefix in (_ENCODER, _DECODER)
    )
    return _checked(info, encoder, decoder, name)


def _checked(
    info: dict[str, Any],
    encoder: dict[str, Tensor],
    decoder: dict[str, Tensor],
    name: str,
) -> Weights:
    """Weights that are what they claim to be, in single precision."""
    check_weights(info, encoder, decoder, name)
    return Weights(
        {key: _single(value) for key, value in encoder.items()},
        {key: _single(value) for key, value in decoder.items()},
        info,
        name,
    )


def _check_archive(file: str | Path | BinaryIO) -> None:
    """Refuse archives whose entries are larger than the file: packed or forged ones."""
    with zipfile.ZipFile(file) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if isinstance(file, str | Path):
        size = os.path.getsize(file)
    else:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
    if claimed > size:
        raise ValueError(f'{claimed} bytes are claimed in a file of {size}')


def _renamed(
    state_dict: Mapping[str, Any], prefixes: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    """Replace the first matching prefix of every key."""
    renamed = {}
    for key, value in state_dict.items():
        old, new = next((p for p in prefixes if key.startswith(p[0])), ('', ''))
        renamed[new + key.removeprefix(old)] = value
    return renamed


def _unwrapped(key: str) -> str:
    """Remove what wrappers of a module added to a key."""
    return '.'.join(part for part in key.split('.') if part not in _WRAPPERS)


def _stored(value: Tensor, half: bool) -> Tensor:
    """Detach a tensor for storage; integers stay as they are."""
    if half and value.is_floating_point():
        value = value.half()
    return value.detach().cpu().clone()


def _single(value: Tensor) -> Tensor:
    """Convert half precision, which is for storage only, to single precision."""
    return value.float() if value.dtype == torch.float16 else value
