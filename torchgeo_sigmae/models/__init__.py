# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Models. Importing this package registers our encoders with timm, smp and TorchGeo."""

from . import registry  # noqa: F401
from .decoders import CrossDecoder, SelfDecoder
from .encoder import SIGMAEViT, build_encoder
from .layout import TokenLayout
from .mae import MaskedAutoencoder
from .pyramid import S2MAEPyramid, SatMAEPyramid, SIGMAEPyramid
from .registration import register
from .spectral import S2MAEViT, SatMAEViT, encoder_arguments
from .tokens import masked_mse, normalize_patches

__all__ = (
    'CrossDecoder',
    'MaskedAutoencoder',
    'S2MAEPyramid',
    'S2MAEViT',
    'SIGMAEPyramid',
    'SIGMAEViT',
    'SatMAEPyramid',
    'SatMAEViT',
    'SelfDecoder',
    'TokenLayout',
    'build_encoder',
    'encoder_arguments',
    'masked_mse',
    'normalize_patches',
)

register()
