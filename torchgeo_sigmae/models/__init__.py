# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Models. Importing this package registers our encoders with timm, smp and TorchGeo."""

from . import registry
from .decoders import CrossDecoder, SelfDecoder
from .embeddings import group_bands
from .encoder import SIGMAEViT, build_encoder
from .layout import TokenLayout
from .mae import MaskedAutoencoder, encode_visible, layout_of
from .positions import POSITIONS
from .pyramid import S2MAEPyramid, SatMAEPyramid, SIGMAEPyramid
from .registration import register, register_weights
from .spectral import (
    S2MAEViT,
    SatMAEViT,
    SpectralViT,
    encoder_arguments,
)
from .tokens import (
    gather_tokens,
    masked_mse,
    normalize_patches,
    scatter_tokens,
)

__all__ = (
    'POSITIONS',
    'CrossDecoder',
    'MaskedAutoencoder',
    'S2MAEPyramid',
    'S2MAEViT',
    'SIGMAEPyramid',
    'SIGMAEViT',
    'SatMAEPyramid',
    'SatMAEViT',
    'SelfDecoder',
    'SpectralViT',
    'TokenLayout',
    'build_encoder',
    'encode_visible',
    'encoder_arguments',
    'gather_tokens',
    'group_bands',
    'layout_of',
    'masked_mse',
    'normalize_patches',
    'register',
    'register_weights',
    'registry',
    'scatter_tokens',
)

register()
