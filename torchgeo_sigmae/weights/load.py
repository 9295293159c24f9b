# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretrained weights into a model, strictly."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor
from torchvision.models._api import WeightsEnum

from .._compiled import unwrap
from ..bands import BandSet
from ..models.encoder import SIGMAEViT, resample_positions
from ..models.layout import layout_of_state
from ..models.mae import MaskedAutoencoder
from ..models.spectral import SpectralViT
from .adapt import weights_for_bands
from .files import Weights
from .read import read_weights
from .schema import decoder_size
from .tensors import SPECTRAL_HEAD

__all__ = ('load_weights',)


def load_weights(
    model: VisionTransformer | MaskedAutoencoder,
    weights: Weights | WeightsEnum | str | Path,
    bands: Sequence[str] | None = None,
) -> None:
    """Load pretrained weights into an encoder, or into encoder and decoder.

    Position embeddings are interpolated to the image size of the model.

    Args:
        model: A timm encoder, or a masked autoencoder. Its decoder is loaded as well if
            the weights hold one of the same shape; otherwise it stays, with a warning.
        weights: The weights, or any source that :func:`.read_weights` takes.
        bands: The bands the encoder sees; a :class:`~torchgeo_sigmae.bands.BandSet`
            for another sensor than Sentinel-2. Weights for other bands are adapted as
            in :func:`~torchgeo_sigmae.weights.adapt_bands`. None to take them as they
            are.

    Raises:
        ValueError: If the weights do not fit the encoder, or cannot be adapted to its
            bands.
    """
    if not isinstance(weights, Weights):
        weights = read_weights(weights)
    if bands is not None:
        weights = weights_for_bands(weights, BandSet.from_data(bands))
    model = unwrap(model)
    if isinstance(model, MaskedAutoencoder):
        _check_tokens(model, weights)
        _load_encoder(unwrap(model.encoder), weights)
        _load_decoder(model, weights)
    else:
        _load_encoder(model, weights)


def _check_tokens(model: MaskedAutoencoder, weights: Weights) -> None:
    """Refuse tokens that the decoder was not built for; the encoder would take them."""
    state = weights.encoder
    if not isinstance(model.encoder, SpectralViT) or 'joint_positions' not in state:
        return
    same = layout_of_state(state) == model.layout
    if not same or bool(state['joint_positions']) != model.decoder.joint:
        raise ValueError(
            f'weights: {weights.name!r} was made for '
            f'model={weights.info.get("model", "?")!r} and has other cubes, groups or '
            'positions than this model. Build the encoder with '
            'torchgeo_sigmae.models.encoder_arguments(weights.encoder) and the same '
            'positions.'
        )


def _load_encoder(encoder: VisionTransformer, weights: Weights) -> None:
    """Load the encoder, or refuse what does not fit in one readable message."""
    state = dict(weights.encoder)
    if isinstance(encoder, SIGMAEViT):
        encoder.adopt(state)
    problems = _differences(encoder.state_dict(), state)
    if problems:
        raise ValueError(
            f'weights: {weights.name!r} was made for '
            f'model={weights.info.get("model", "?")!r} and does not fit this encoder: '
            f'{problems}. Pass the model name and the bands the weights were made '
            'with; torchgeo_sigmae.adapt_bands(weights, bands, path) writes a file for '
            'other bands.'
        )
    if state.get('pos_embed') is not None:
        state['pos_embed'] = resample_positions(encoder, state['pos_embed'])
    encoder.load_state_dict(state)


def _load_decoder(model: MaskedAutoencoder, weights: Weights) -> None:
    """Load the decoder if it fits, or warn that it is not loaded."""
    if not weights.decoder:
        return
    decoder = model.decoder
    state = _with_head(decoder.state_dict(), weights.decoder)
    try:
        if 'pos_embed' in state and decoder.pos_embed is not None:
            stored, side = state['pos_embed'], math.isqrt(state['pos_embed'].shape[1])
            state['pos_embed'] = resample_abs_pos_embed(
                stored, list(decoder.grid), [side, side], num_prefix_tokens=0
            )
        # On a copy: what does not fit is loaded in part.
        copy.deepcopy(decoder).load_state_dict(state)
    except RuntimeError:
        problems = _differences(decoder.state_dict(), state)
        depth, width = decoder_size(state)
        rank_zero_warn(
            f'weights: the decoder of {weights.name!r} does not fit this one: '
            f'{problems}. The encoder is loaded, and the decoder starts anew. To go on '
            f'from both, pass the decoder it was trained with: decoder_depth={depth}, '
            f'decoder_dim={width}, and the same decoder, decoder_num_heads and '
            'positions.'
        )
    else:
        decoder.load_state_dict(state)


def _with_head(
    fresh: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Start the head of the spectral target anew, unless the stored one fits."""
    heads = {k: value for k, value in fresh.items() if k.startswith(SPECTRAL_HEAD)}
    for key, value in heads.items():
        if key in stored and stored[key].shape == value.shape:
            heads[key] = stored[key]
    rest = {k: value for k, value in stored.items() if not k.startswith(SPECTRAL_HEAD)}
    return {**rest, **heads}


def _differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Name tensors that are missing, unexpected or of another shape."""
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    # Positions are interpolated.
    differing = [
        f'{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}'
        for key, value in expected.items()
        if key in state and key != 'pos_embed' and state[key].shape != value.shape
    ]
    return '; '.join(
        f'{len(keys)} {what} tensors ({", ".join(keys[:2])}, ...)'
        for keys, what in (
            (missing, 'missing'),
            (unexpected, 'unexpected'),
            (differing, 'differently shaped'),
        )
        if keys
    )
