# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights as a folder, which timm and the Hugging Face Hub load.

=============================  ====================================================
``config.json``                timm's configuration; ours under ``torchgeo_sigmae``
``model.safetensors``          the encoder under plain timm keys
``decoder/model.safetensors``  the decoder, if it was exported
``README.md``                  the model card
=============================  ====================================================

``timm.create_model('local-dir:<folder>', pretrained=True)`` builds the encoder with the
bands, cubes, groups and image size of pretraining, and without a head.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .._files import write_folder
from ..models.layout import layout_of_state
from ..models.spectral import encoder_arguments
from .card import model_card

__all__ = ('FILES', 'is_export', 'is_folder', 'read_export', 'write_export')

_CONFIG, _MODEL, _CARD = 'config.json', 'model.safetensors', 'README.md'
# Older versions of timm take any file of tensors beside config.json for the encoder.
_DECODER = 'decoder/model.safetensors'

#: The files of an exported folder.
FILES = (_CONFIG, _MODEL, _DECODER, _CARD)

#: Where ``config.json`` has what timm does not know: bands, sensor, units, training.
_SECTION = 'torchgeo_sigmae'


def is_folder(path: str | Path) -> bool:
    """Return whether an export goes to a folder: it is one, or has no suffix."""
    path = Path(path)
    return path.is_dir() or (not path.suffix and not path.exists())


def is_export(path: str | Path) -> bool:
    """Return whether a path is an exported folder."""
    return (Path(path) / _CONFIG).is_file()


def write_export(
    folder: str | Path,
    info: Mapping[str, Any],
    encoder: Mapping[str, Tensor],
    decoder: Mapping[str, Tensor],
) -> None:
    """Write a folder; all of it is replaced at once or not at all.

    A ``README.md`` that exists stays, because it may have been edited by hand. *info*
    holds plain values; *encoder* and *decoder* are tensors on the CPU.
    """
    folder = Path(folder)
    config = json.dumps(_config(info, encoder), indent=2, allow_nan=False)
    files = {_MODEL: _packed(encoder), _CONFIG: f'{config}\n'.encode()}
    if decoder:
        files[_DECODER] = _packed(decoder)
    if (folder / _CARD).exists():
        rank_zero_info(f'path: {folder / _CARD} exists and stays as it is.')
    else:
        width = encoder['patch_embed.proj.weight'].shape[0]
        files[_CARD] = model_card(info, folder.name, width).encode()
    write_folder(folder, files, obsolete=() if decoder else (_DECODER,))


def read_export(
    folder: str | Path, name: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Read a folder, ours or one that timm wrote for one of our encoders.

    Returns information, encoder without a head, and decoder, not checked yet.
    """
    folder, decoder = Path(folder), {}
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding='utf-8'))
        info = {**config.get(_SECTION, {}), 'model': config['architecture']}
        encoder = {
            key: value
            for key, value in load_file(folder / _MODEL).items()
            if not key.startswith('head.')
        }
        if (folder / _DECODER).is_file():
            decoder = load_file(folder / _DECODER)
    except (
        *(AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError),
        SafetensorError,
    ) as error:
        raise ValueError(
            f'weights: {name!r} is not an exported folder: it needs a {_CONFIG} with '
            f"an 'architecture' and a {_MODEL} ({type(error).__name__}: {error}). Pass "
            'a folder made by SIGMAETask.export.'
        ) from error
    return info, encoder, decoder


def _config(info: Mapping[str, Any], encoder: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration that timm reads."""
    channels = layout_of_state(encoder).channels
    arguments = {
        'in_chans': channels,
        'num_classes': 0,
        'global_pool': 'avg',
        'fc_norm': False,
        'dynamic_img_size': True,
        **encoder_arguments(encoder),
    }
    if 'spectral_embed' in encoder:
        arguments['positions'] = info.get('positions', 'learnable')
    pretrained: dict[str, Any] = {
        'crop_pct': 1.0,
        'interpolation': 'bicubic',
        'num_classes': 0,
        # None: timm would repeat the kernels of the first bands for other ones.
        'first_conv': None,
        'classifier': 'head',
        'pool_size': None,
    }
    if size := info.get('size'):
        arguments['img_size'] = size
        pretrained['input_size'] = [channels, size, size]
    for key in ('mean', 'std'):
        values = info.get(key)
        # Bands that were matched to others have none.
        if values and None not in values and len(values) == channels:
            pretrained[key] = list(values)
    return {
        'architecture': info['model'],
        'num_classes': 0,
        'num_features': encoder['patch_embed.proj.weight'].shape[0],
        'global_pool': 'avg',
        'model_args': arguments,
        'pretrained_cfg': pretrained,
        _SECTION: dict(info),
    }


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors in the format of safetensors."""
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    return bytes(save(contiguous, metadata={'format': 'pt'}))
