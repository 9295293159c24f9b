# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The one file format: an encoder with what must be known to use it.

``{'hyper_parameters': {'model': name, ...}, 'state_dict': {'model.<key>': tensor}}`` is
what TorchGeo's ``extract_backbone`` reads, so one file serves ``weights=<path>`` of
every TorchGeo task and of ours. A Lightning checkpoint of our task keeps the encoder
under the same keys and can be passed in its place. Its ``hyper_parameters`` are the
task's arguments; what is known about the encoder stands under ``'encoder'``.

A file may hold the decoder as well, under ``decoder.<key>``: then pretraining can go on
from it. Files in half precision are read in single precision.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from .._files import atomic_path
from .untrusted import check_archive, check_content, check_model, check_record

__all__ = (
    'DECODER_PREFIX',
    'ENCODER_KEY',
    'EncoderCheckpoint',
    'atomic_save',
    'check_task',
    'decoder_of',
    'encoder_of',
    'from_checkpoint_keys',
    'load_plain',
    'read_content',
    'read_encoder',
    'save_encoder',
    'to_checkpoint_keys',
    'write_encoder',
)

_PREFIX = 'model.'

#: What the decoder's keys begin with, in files and in training checkpoints.
DECODER_PREFIX = 'decoder.'

#: Where a training checkpoint keeps the ``hyper_parameters`` of an encoder file.
ENCODER_KEY = 'encoder'

#: Parts of our task by their names in its state dict and in a checkpoint. The encoder
#: is kept under ``model.<timm key>``, so that TorchGeo's ``extract_backbone`` finds it.
_PARTS = (('model.encoder.', _PREFIX), ('model.decoder.', DECODER_PREFIX))


@dataclass(frozen=True)
class EncoderCheckpoint:
    """The content of an encoder file.

    Attributes:
        state_dict: The encoder's tensors under plain timm keys.
        hyper_parameters: What is known about it: ``model``, ``bands``, ``mean``,
            ``std``, ``size``, ``norm_pix_loss`` and more; plain Python values.
    """

    state_dict: dict[str, Tensor]
    hyper_parameters: dict[str, Any]


def atomic_save(content: object, path: str | Path) -> None:
    """Save with torch, so that a crash leaves the old file or the new, never half.

    Args:
        content: What to save.
        path: Where; missing folders are made.

    Raises:
        OSError: If it cannot be written; the message names *path*.
    """
    # torch says RuntimeError where a disk is full.
    with atomic_path(path, 'path', (RuntimeError,)) as part, part.open('wb') as file:
        torch.save(content, file)


def save_encoder(
    encoder: nn.Module,
    path: str | Path,
    hyper_parameters: Mapping[str, Any],
    decoder: nn.Module | None = None,
    half: bool = False,
) -> None:
    """Save an encoder in the one file format.

    Args:
        encoder: The timm encoder.
        path: Where; missing folders are made.
        hyper_parameters: Plain Python values; ``model`` (the timm name) is required.
        decoder: The decoder it was pretrained with, to go on from.
        half: Whether to store in half precision.

    Raises:
        ValueError: If ``hyper_parameters['model']`` is missing.
    """
    content = EncoderCheckpoint(encoder.state_dict(), dict(hyper_parameters))
    write_encoder(content, path, decoder.state_dict() if decoder else {}, half)


def write_encoder(
    checkpoint: EncoderCheckpoint,
    path: str | Path,
    decoder: Mapping[str, Tensor] | None = None,
    half: bool = False,
) -> None:
    """Write what :func:`.read_encoder` reads.

    Args:
        checkpoint: The tensors, and what is known about them.
        path: Where; missing folders are made. Written atomically.
        decoder: Tensors of the decoder, if they are to be kept.
        half: Whether to store in half precision.

    Raises:
        ValueError: If ``checkpoint.hyper_parameters['model']`` is missing.
    """
    if 'model' not in checkpoint.hyper_parameters:
        raise ValueError(
            "hyper_parameters: 'model' is missing. TorchGeo reads the timm name there."
        )
    parts = ((_PREFIX, checkpoint.state_dict), (DECODER_PREFIX, decoder or {}))
    state_dict = {
        f'{prefix}{key}': (_half(value) if half else value).detach().cpu().clone()
        for prefix, part in parts
        for key, value in part.items()
    }
    hyper_parameters = dict(checkpoint.hyper_parameters)
    atomic_save({'hyper_parameters': hyper_parameters, 'state_dict': state_dict}, path)


def to_checkpoint_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Name a task's tensors as they are kept in a training checkpoint.

    Args:
        state_dict: The task's state dict.

    Returns:
        The same tensors, the encoder's under ``model.<timm key>``.
    """
    return _rename(state_dict, _PARTS)


def from_checkpoint_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`to_checkpoint_keys`.

    Args:
        state_dict: The state dict of a training checkpoint.

    Returns:
        The same tensors under the task's own names.
    """
    return _rename(state_dict, tuple((kept, own) for own, kept in _PARTS))


def _rename(
    state_dict: Mapping[str, Any], parts: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    """Replace the first matching prefix of every key."""
    renamed = {}
    for key, value in state_dict.items():
        old, new = next((p for p in parts if key.startswith(p[0])), ('', ''))
        renamed[new + key.removeprefix(old)] = value
    return renamed


def read_encoder(path: str | Path) -> EncoderCheckpoint:
    """Read an encoder file, or the encoder of a training checkpoint of ours.

    Args:
        path: File made by ``SIGMAETask.export`` or by Lightning from a ``SIGMAETask``.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds more than tensors and plain values (it is not
            executed), or is not in the format.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f'weights: there is no file {str(path)!r}. Pass the path of a file made by '
            'SIGMAETask.export.'
        )
    return encoder_of(read_content(path, str(path)), str(path))


def load_plain(file: str | Path | BinaryIO, map_location: Any = 'cpu') -> Any:
    """Load tensors and plain values from a file, and nothing else.

    Args:
        file: A path, or an open file.
        map_location: As in :func:`torch.load`.

    Returns:
        What the file holds.

    Raises:
        ValueError: Whatever is wrong with it.
    """
    try:
        check_archive(file)
        content = torch.load(file, map_location=map_location, weights_only=True)
        # On the meta device nothing is held, and nothing can be claimed.
        if str(map_location) != 'meta':
            check_content(content)
        return content
    except Exception as error:
        # Damaged bytes are a program of their own to an unpickler, which stumbles over
        # them with errors of any type.
        raise ValueError(f'{type(error).__name__}: {error}') from error


def read_content(
    file: str | Path | BinaryIO, name: str, map_location: Any = 'cpu'
) -> Any:
    """Read a file of weights.

    Args:
        file: A path, or an open file.
        name: What to call it in errors.
        map_location: As in :func:`torch.load`.

    Returns:
        What the file holds.

    Raises:
        ValueError: If that is more than tensors and plain values (it is not executed).
    """
    try:
        return load_plain(file, map_location)
    except ValueError as error:
        raise ValueError(
            f'weights: {name!r} cannot be read as tensors and plain values, and '
            'anything else is not loaded from a file. Pass a file made by '
            'SIGMAETask.export.'
        ) from error


def encoder_of(content: Any, name: str) -> EncoderCheckpoint:
    """Find the encoder in what a file holds.

    Args:
        content: What :func:`read_content` returns.
        name: What to call it in errors.

    Returns:
        The encoder.

    Raises:
        ValueError: If it is not in the format, or claims what cannot be.
    """
    try:
        hyper_parameters = dict(content['hyper_parameters'])
        hyper_parameters = dict(content.get(ENCODER_KEY, hyper_parameters))
        hyper_parameters['model']
        tensors = {
            key.removeprefix(_PREFIX): value
            for key, value in content['state_dict'].items()
            if key.startswith(_PREFIX)
        }
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f'weights: {name!r} is not an encoder file: it needs '
            "'hyper_parameters' with a 'model' and a 'state_dict'. Pass a file made by "
            'SIGMAETask.export.'
        ) from error
    check_record(hyper_parameters, tensors, name)
    state_dict = {key: _single(value) for key, value in tensors.items()}
    return EncoderCheckpoint(state_dict, hyper_parameters)


def decoder_of(content: Any) -> dict[str, Tensor]:
    """Find the decoder in what a file holds.

    Args:
        content: What :func:`read_content` returns, of a file with an encoder.

    Returns:
        Its tensors, none if there is no decoder.
    """
    return {
        key.removeprefix(DECODER_PREFIX): _single(value)
        for key, value in content['state_dict'].items()
        if key.startswith(DECODER_PREFIX) and isinstance(value, Tensor)
    }


def check_task(content: Any, name: str) -> None:
    """Refuse a training checkpoint whose arguments its tensors do not bear out.

    Args:
        content: What :func:`read_content` returns.
        name: What to call it in errors.

    Raises:
        ValueError: If it is not one of ours.
    """
    encoder, decoder = encoder_of(content, name), decoder_of(content)
    arguments = content['hyper_parameters']
    check_record(arguments, encoder.state_dict, name)
    check_model(arguments['model'], encoder.state_dict, name)
    blocks = {key.split('.')[1] for key in decoder if key.startswith('blocks.')}
    width = decoder['mask_token'].shape[-1:] if 'mask_token' in decoder else ()
    asked = arguments.get('decoder_depth'), arguments.get('decoder_dim')
    if asked != (len(blocks), *width):
        raise ValueError(
            f'weights: {name!r} cannot be what it claims to be: its decoder has '
            f'{len(blocks)} blocks of width {width}, its arguments ask for {asked}. '
            'Pass a training checkpoint of SIGMAETask.'
        )


def _half(value: Tensor) -> Tensor:
    """Round what is not whole numbers to half precision."""
    return value.half() if value.is_floating_point() else value


def _single(value: Tensor) -> Tensor:
    """Bring a tensor in half precision, which is for files, to single precision."""
    return value.float() if value.dtype == torch.float16 else value
