# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Models. Importing this package registers our encoders with timm, smp and TorchGeo."""

from . import registry
from .adapt import adapt_bands
from .checkpoint import EncoderCheckpoint, read_encoder, save_encoder
from .decoders import CrossDecoder, SelfDecoder
from .encoder import SIGMAEViT, build_encoder
from .groups import group_bands
from .layout import TokenLayout
from .loading import load_encoder_weights, read_weights
from .mae import MaskedAutoencoder
from .matching import AdaptedBand, BandReport
from .positions import POSITIONS
from .pyramid import S2MAEPyramid, SatMAEPyramid, SIGMAEPyramid
from .registration import register, register_weights
from .spectral import (
    S2MAEViT,
    SatMAEViT,
    SpectralViT,
    encoder_arguments,
)
from .stages import Stage, load_stage, parse_stage
from .tokens import (
    gather_tokens,
    masked_mse,
    normalize_patches,
    scatter_tokens,
)
from .visible import encode_visible, layout_of
from .weights import PackagedFile, PackagedWeights, SIGMAE_Weights, normalization

__all__ = (
    'POSITIONS',
    'AdaptedBand',
    'BandReport',
    'CrossDecoder',
    'EncoderCheckpoint',
    'MaskedAutoencoder',
    'PackagedFile',
    'PackagedWeights',
    'S2MAEPyramid',
    'S2MAEViT',
    'SIGMAEPyramid',
    'SIGMAEViT',
    'SIGMAE_Weights',
    'SatMAEPyramid',
    'SatMAEViT',
    'SelfDecoder',
    'SpectralViT',
    'Stage',
    'TokenLayout',
    'adapt_bands',
    'build_encoder',
    'encode_visible',
    'encoder_arguments',
    'gather_tokens',
    'group_bands',
    'layout_of',
    'load_encoder_weights',
    'load_stage',
    'masked_mse',
    'normalization',
    'normalize_patches',
    'parse_stage',
    'read_encoder',
    'read_weights',
    'register',
    'register_weights',
    'registry',
    'save_encoder',
    'scatter_tokens',
)

register()
for _name in registry.NAMES:
    register_weights(_name, None, SIGMAE_Weights)
