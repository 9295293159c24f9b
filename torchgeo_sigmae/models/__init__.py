# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Models. Importing this package registers our encoders with timm, smp and TorchGeo."""

from . import registry
from .adapt import adapt_bands
from .checkpoint import EncoderCheckpoint, read_encoder, save_encoder
from .decoders import CrossDecoder, SelfDecoder
from .encoder import SIGMAEViT, build_encoder, encode_visible
from .loading import load_encoder_weights, read_weights
from .mae import MaskedAutoencoder
from .matching import AdaptedBand, BandReport
from .pyramid import SIGMAEPyramid
from .registration import register, register_weights
from .tokens import (
    gather_tokens,
    masked_mse,
    normalize_patches,
    patchify,
    scatter_tokens,
    unpatchify,
)
from .weights import PackagedFile, PackagedWeights, SIGMAE_Weights, normalization

__all__ = (
    'AdaptedBand',
    'BandReport',
    'CrossDecoder',
    'EncoderCheckpoint',
    'MaskedAutoencoder',
    'PackagedFile',
    'PackagedWeights',
    'SIGMAEPyramid',
    'SIGMAEViT',
    'SIGMAE_Weights',
    'SelfDecoder',
    'adapt_bands',
    'build_encoder',
    'encode_visible',
    'gather_tokens',
    'load_encoder_weights',
    'masked_mse',
    'normalization',
    'normalize_patches',
    'patchify',
    'read_encoder',
    'read_weights',
    'register',
    'register_weights',
    'registry',
    'save_encoder',
    'scatter_tokens',
    'unpatchify',
)

register()
for _name in registry.NAMES:
    register_weights(_name, None, SIGMAE_Weights)
