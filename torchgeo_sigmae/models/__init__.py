# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Models. Importing this package registers our encoders with timm."""

from . import registry
from .checkpoint import (
    EncoderCheckpoint,
    load_encoder_weights,
    read_encoder,
    save_encoder,
)
from .decoders import CrossDecoder, SelfDecoder
from .encoder import SIGMAEViT, build_encoder, encode_visible
from .mae import MaskedAutoencoder
from .tokens import (
    gather_tokens,
    masked_mse,
    normalize_patches,
    patchify,
    scatter_tokens,
    unpatchify,
)

__all__ = (
    'CrossDecoder',
    'EncoderCheckpoint',
    'MaskedAutoencoder',
    'SIGMAEViT',
    'SelfDecoder',
    'build_encoder',
    'encode_visible',
    'gather_tokens',
    'load_encoder_weights',
    'masked_mse',
    'normalize_patches',
    'patchify',
    'read_encoder',
    'registry',
    'save_encoder',
    'scatter_tokens',
    'unpatchify',
)
