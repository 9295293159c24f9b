# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The one file format: an encoder with what must be known to use it.

``{'hyper_parameters': {'model': name, ...}, 'state_dict': {'model.<key>': tensor}}`` is
what TorchGeo's ``extract_backbone`` reads, so one file serves ``weights=<path>`` of
every TorchGeo task and of ours. A Lightning checkpoint of our task keeps the encoder
under the same keys and can be passed in its place.
"""

import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torchgeo.models import get_weight
from torchvision.models._api import WeightsEnum

from ..bands import SENTINEL2, Sensor, get_sensor
from .encoder import resample_positions

__all__ = (
    'EncoderCheckpoint',
    'atomic_save',
    'from_checkpoint_keys',
    'load_encoder_weights',
    'read_encoder',
    'save_encoder',
    'to_checkpoint_keys',
)

_PREFIX = 'model.'

#: Parts of our task by their names in its state dict and in a checkpoint. The encoder
#: is kept under ``model.<timm key>``, so that TorchGeo's ``extract_backbone`` finds it.
_PARTS = (('model.encoder.', _PREFIX), ('model.decoder.', 'decoder.'))


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
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f'.{path.name}.', delete=False
    ) as file:
        try:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    # A temporary file is private to its owner; a checkpoint is as readable as any.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(file.name, 0o666 & ~umask)
    os.replace(file.name, path)


def save_encoder(
    encoder: nn.Module, path: str | Path, hyper_parameters: Mapping[str, Any]
) -> None:
    """Save an encoder in the one file format.

    Args:
        encoder: The timm encoder.
        path: Where; missing folders are made.
        hyper_parameters: Plain Python values; ``model`` (the timm name) is required.

    Raises:
        ValueError: If ``hyper_parameters['model']`` is missing.
    """
    if 'model' not in hyper_parameters:
        raise ValueError(
            "hyper_parameters: 'model' is missing. TorchGeo reads the timm name there."
        )
    state_dict = {
        f'{_PREFIX}{key}': value.detach().cpu().clone()
        for key, value in encoder.state_dict().items()
    }
    content = {'hyper_parameters': dict(hyper_parameters), 'state_dict': state_dict}
    atomic_save(content, path)


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
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise ValueError(
            f'weights: {str(path)!r} cannot be read as tensors and plain values, and '
            'anything else is not loaded from a file. Pass a file made by '
            'SIGMAETask.export.'
        ) from error
    try:
        hyper_parameters = dict(content['hyper_parameters'])
        hyper_parameters['model']
        state_dict = {
            key.removeprefix(_PREFIX): value
            for key, value in content['state_dict'].items()
            if key.startswith(_PREFIX)
        }
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f'weights: {str(path)!r} is not an encoder file: it needs '
            "'hyper_parameters' with a 'model' and a 'state_dict'. Pass a file made by "
            'SIGMAETask.export.'
        ) from error
    return EncoderCheckpoint(state_dict, hyper_parameters)


def load_encoder_weights(
    encoder: VisionTransformer,
    weights: WeightsEnum | str | Path,
    bands: tuple[str, ...] | None = None,
    sensor: str | Sensor = SENTINEL2,
) -> None:
    """Load pretrained weights into an encoder, strictly.

    Args:
        encoder: The timm encoder.
        weights: A weight enum, its string, or the path of an encoder file.
        bands: Canonical names of the encoder's input bands; checked against those the
            weights were made with, where the file tells.
        sensor: The sensor the band names belong to.

    Raises:
        FileNotFoundError: If *weights* is neither a known enum nor a file.
        ValueError: If the weights are of another architecture or of other bands.
    """
    if isinstance(weights, WeightsEnum):
        state_dict, meta = _download(weights), weights.meta
    elif os.path.exists(weights):
        checkpoint = read_encoder(weights)
        state_dict, meta = checkpoint.state_dict, checkpoint.hyper_parameters
    else:
        try:
            enum = get_weight(str(weights))
        except ValueError:
            raise FileNotFoundError(
                f'weights: {str(weights)!r} is neither a file nor the name of a weight '
                'enum that TorchGeo knows. Check the path.'
            ) from None
        state_dict, meta = _download(enum), enum.meta

    made_for = meta.get('bands')
    if bands is not None and made_for:
        made_for = get_sensor(sensor).spell(made_for)
        if made_for != bands:
            raise ValueError(
                f'weights: {str(weights)!r} was made for the bands {list(made_for)}, '
                f'but the model sees {list(bands)}. Pass bands={list(made_for)}.'
            )
    _check_architecture(encoder, state_dict, str(weights), str(meta.get('model', '?')))
    if state_dict.get('pos_embed') is not None:
        positions = resample_positions(encoder, state_dict['pos_embed'])
        state_dict = {**state_dict, 'pos_embed': positions}
    encoder.load_state_dict(state_dict)


def _download(weights: WeightsEnum) -> dict[str, Tensor]:
    """Fetch the tensors of a weight enum: hash checked, nothing but tensors."""
    state_dict: dict[str, Tensor] = weights.get_state_dict(
        progress=True, check_hash=True, weights_only=True
    )
    return state_dict


def _check_architecture(
    encoder: nn.Module, state_dict: Mapping[str, Tensor], weights: str, made_for: str
) -> None:
    """Refuse a state dict that does not fit, in one readable message."""
    expected = encoder.state_dict()
    missing = [key for key in expected if key not in state_dict]
    unexpected = [key for key in state_dict if key not in expected]
    differing = [
        f'{key} {tuple(state_dict[key].shape)} instead of {tuple(value.shape)}'
        for key, value in expected.items()
        if key in state_dict
        and key != 'pos_embed'
        and state_dict[key].shape != value.shape
    ]
    problems = [
        f'{len(keys)} {what} tensors ({", ".join(keys[:2])}, ...)'
        for keys, what in (
            (missing, 'missing'),
            (unexpected, 'unexpected'),
            (differing, 'differently shaped'),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            f'weights: {weights!r} was made for model={made_for!r} and does not fit '
            f'this encoder: {"; ".join(problems)}. Pass the model name and the bands '
            'the weights were made with.'
        )
