# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Is a file what it claims to be? Checked before anything is built from it.

A file of a few bytes can name a model of billions of parameters, or hold a tensor that
claims terabytes. What we read of a file is checked here for type, range and size.
"""

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

import timm
import torch
from torch import Tensor

__all__ = ('check_model', 'check_weights', 'decoder_size')

#: The largest plausible count.
_LARGEST = 2**16


def check_weights(
    info: Mapping[str, Any],
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    name: str,
) -> None:
    """Check the information about weights, and that the tensors bear it out.

    *info* may be the arguments of the task of a checkpoint; *decoder* may be empty.

    Raises:
        ValueError: If a value has another type or is out of range, a tensor claims more
            memory than there is, or the tensors are not those of such an encoder.
    """
    tensors = [*encoder.values(), *decoder.values()]
    problem = (
        _info_problem(info)
        or _size_problem(tensors)
        or _encoder_problem(info, encoder)
        or _decoder_problem(info, decoder)
    )
    if problem:
        raise ValueError(
            f'weights: {name!r} cannot be what it claims to be: {problem}. Pass a file '
            'made by SIGMAETask.export.'
        )


def check_model(model: str, encoder: Mapping[str, Tensor], name: str) -> None:
    """Refuse a model name whose model timm lacks, or is far larger than the tensors."""
    if not timm.is_model(model):
        raise ValueError(
            f'weights: {name!r} is for model={model!r}, which timm does not know. Pass '
            'a file made by SIGMAETask.export.'
        )
    with torch.device('meta'):
        parameters = timm.create_model(model, num_classes=0).parameters()
    needed = sum(parameter.numel() for parameter in parameters)
    stored = sum(value.numel() for value in encoder.values())
    # Positions and the first layer differ with images and bands.
    if needed > 2 * stored + 10**8:
        raise ValueError(
            f'weights: {name!r} holds {stored} numbers for model={model!r}, which '
            f'takes {needed}. Pass a file made by SIGMAETask.export.'
        )


def decoder_size(decoder: Mapping[str, Tensor]) -> tuple[int, int]:
    """Count the blocks of a decoder, and measure its width."""
    depth = len({key.split('.')[1] for key in decoder if key.startswith('blocks.')})
    return depth, decoder['mask_token'].shape[-1] if 'mask_token' in decoder else 0


def _info_problem(info: Mapping[str, Any]) -> str:
    """The first value that has another type or is out of range."""
    if not isinstance(info['model'], str):
        return f'model={short(info["model"])} is not a name'
    counts = ('size', 'patch_size', 'in_channels', 'dates', 'cube_bands')
    for key in (*counts, 'decoder_num_heads'):
        value = info.get(key)
        if value is not None and not (type(value) is int and 1 <= value <= _LARGEST):
            return f'{key}={short(value)} is not a whole number of 1 to {_LARGEST}'
    bands, stages = info.get('bands') or [], info.get('trained_on') or []
    if not _is_list_of(str, bands):
        return 'bands is not a list of names'
    if not _is_list_of(dict, stages):
        return 'trained_on is not a list of stages'
    for key in ('scale', 'offset', 'mean', 'std'):
        values = info.get(key)
        values = values.tolist() if isinstance(values, Tensor) else values
        values = values if isinstance(values, list | tuple) else [values]
        # Bands that were matched to others have no mean and std.
        numbers = [value for value in values if value is not None]
        if not _is_list_of(int | float, numbers):
            return f'{key}={short(values)} is not a number'
        if not all(abs(number) < float('inf') for number in numbers):
            return f'{key}={short(values)} is not finite'
        if key == 'std' and 0 in values:
            return 'std is 0'
        # Those of a task, which has no patch_size, are for the bands of its data.
        if 'patch_size' in info and bands and len(values) not in {1, len(bands)}:
            return f'{key} has {len(values)} values for {len(bands)} bands'
    return ''


def _is_list_of(kind: Any, values: object) -> bool:
    """Is this a list of values of one type?"""
    return isinstance(values, list | tuple) and all(
        isinstance(value, kind) for value in values
    )


def _size_problem(tensors: list[Any]) -> str:
    """Tensors that claim more memory than the file holds."""
    storages = {}
    for value in tensors:
        if not isinstance(value, Tensor):
            return 'state_dict holds something other than tensors'
        if value.layout is not torch.strided or value.is_meta or value.is_nested:
            return f'a tensor is not dense ({value.layout})'
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    claimed, stored = sum(value.nbytes for value in tensors), sum(storages.values())
    # Twice, because tensors may be tied.
    if claimed > 2 * stored:
        return f'tensors of {claimed} bytes are claimed, {stored} are there'
    return ''


def _encoder_problem(info: Mapping[str, Any], encoder: Mapping[str, Tensor]) -> str:
    """The first tensor that is not one of an encoder, or not as described."""
    for key, dimensions in (
        ('patch_embed.proj.weight', {4, 5}),
        ('patch_embed.band_group', {1}),
        ('spectral_embed', {3}),
        ('pos_embed', {3}),
    ):
        tensor = encoder.get(key)
        if tensor is not None and (tensor.ndim not in dimensions or not tensor.numel()):
            return f'{key} has the shape {tuple(tensor.shape)}'
    kernel = encoder.get('patch_embed.proj.weight')
    spectrum = encoder.get('spectral_embed')
    if kernel is None or (kernel.ndim == 5 and spectrum is None):
        return 'there is no first layer of an encoder (patch_embed.proj.weight)'
    channels, patch = kernel.shape[1], kernel.shape[-1]
    if kernel.ndim == 5 and spectrum is not None:
        channels = kernel.shape[2] * spectrum.shape[1]
    dates, bands = info.get('dates') or 1, info.get('bands')
    if bands and dates * len(bands) != channels:
        return (
            f'its first layer takes {channels} channels, but it names {len(bands)} '
            f'bands of {dates} date(s): {short(list(bands))}'
        )
    groups = encoder.get('patch_embed.band_group')
    if groups is not None:
        numbers = set(groups.tolist())
        counted = not groups.is_floating_point() and len(groups) == channels
        if not counted or numbers != set(range(len(numbers))):
            return 'patch_embed.band_group does not number the groups of bands'
    if info.get('patch_size') not in {None, patch}:
        return f'patch_size={info["patch_size"]} with patches of {patch} pixels'
    positions, side = encoder.get('pos_embed'), (info.get('size') or 0) // patch
    if positions is not None and side**2 > positions.shape[1]:
        return f'size={info["size"]} with positions of {positions.shape[1]} patches'
    return ''


def _decoder_problem(info: Mapping[str, Any], decoder: Mapping[str, Tensor]) -> str:
    """A decoder that the arguments of a task do not describe."""
    if 'decoder_depth' not in info:
        return ''
    depth, width = decoder_size(decoder)
    arguments = info['decoder_depth'], info.get('decoder_dim')
    if arguments == (depth, width):
        return ''
    return (
        f'its decoder has {depth} blocks of width {width}, its arguments ask for '
        f'{short(arguments)}'
    )
