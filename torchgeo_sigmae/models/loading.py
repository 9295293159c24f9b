# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Whatever ``weights=`` may be, read and loaded strictly."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from timm.models import VisionTransformer
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from ..bands import SENTINEL2, Sensor, get_sensor
from .checkpoint import EncoderCheckpoint, read_encoder
from .encoder import resample_positions
from .spectral import SpectralViT
from .weights import PackagedWeights, resolve_weights

__all__ = ('load_encoder_weights', 'read_weights')


def read_weights(weights: WeightsEnum | str | Path) -> EncoderCheckpoint:
    """Read weights and what is known about them.

    Args:
        weights: A weight enum, its string, or the path of an encoder file.

    Returns:
        The tensors under plain timm keys. Of an enum of TorchGeo's own, its ``meta``
        is all that is known.

    Raises:
        FileNotFoundError: If *weights* is neither a known enum nor a file.
        ValueError: If the file is not in the format.
        RuntimeError: If the file of an enum was altered or damaged.
    """
    found = resolve_weights(weights)
    if isinstance(found, Path):
        return read_encoder(found)
    if isinstance(found, PackagedWeights):
        return found.read()
    state_dict: dict[str, Tensor] = found.get_state_dict(
        progress=True, check_hash=True, weights_only=True
    )
    return EncoderCheckpoint(state_dict, dict(found.meta))


def load_encoder_weights(
    encoder: VisionTransformer,
    weights: WeightsEnum | str | Path,
    bands: tuple[str, ...] | None = None,
    sensor: str | Sensor = SENTINEL2,
    checkpoint: EncoderCheckpoint | None = None,
) -> None:
    """Load pretrained weights into an encoder, strictly.

    Args:
        encoder: The timm encoder.
        weights: A weight enum, its string, or the path of an encoder file.
        bands: Canonical names of the encoder's input bands; checked against those the
            weights were made with, where the file tells.
        sensor: The sensor the band names belong to.
        checkpoint: The content of *weights*, if it was read already.

    Raises:
        FileNotFoundError: If *weights* is neither a known enum nor a file.
        ValueError: If the weights are of another architecture or of other bands.
        RuntimeError: If the file of an enum was altered or damaged.
    """
    checkpoint = checkpoint or read_weights(weights)
    state_dict, known = checkpoint.state_dict, checkpoint.hyper_parameters
    if bands is not None:
        _check_bands(str(weights), known, bands, get_sensor(sensor))
    if isinstance(encoder, SpectralViT):
        encoder.adopt(state_dict)
    _check_architecture(encoder, state_dict, str(weights), str(known.get('model', '?')))
    if state_dict.get('pos_embed') is not None:
        positions = resample_positions(encoder, state_dict['pos_embed'])
        state_dict = {**state_dict, 'pos_embed': positions}
    encoder.load_state_dict(state_dict)


def _check_bands(
    weights: str, known: Mapping[str, Any], bands: tuple[str, ...], sensor: Sensor
) -> None:
    """Refuse weights that were made for other bands, where they tell."""
    dates = known.get('dates', 1)
    if dates != 1:
        raise ValueError(
            f'weights: {weights!r} was made for the channels of {dates} dates side by '
            'side, but the model sees one date at a time. Pass the file it was '
            "adapted from, see hyper_parameters['adapted_from']."
        )
    made_for, made_with = known.get('bands'), known.get('sensor') or sensor.name
    if not made_for:
        return
    with suppress(ValueError):  # a sensor of the user's own has the name it has
        made_with = get_sensor(made_with).name
    names = sensor.spell(made_for)
    if names == bands and made_with == sensor.name:
        return
    raise ValueError(
        f'weights: {weights!r} was made for the bands {list(names)} of {made_with}, '
        f'but the model sees {list(bands)} of {sensor.name}. Pass '
        f'bands={list(names)}, or write a file for your bands with '
        'torchgeo_sigmae.models.adapt_bands(weights, bands, path).'
    )


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
            'the weights were made with; torchgeo_sigmae.models.adapt_bands(weights, '
            'bands, path) writes a file for other bands.'
        )
