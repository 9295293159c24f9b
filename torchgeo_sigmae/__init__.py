# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Masked-autoencoder pretraining for multispectral imagery, inside TorchGeo.

Importing the package registers our encoders with timm, under the names
``sigmae_vit_{tiny,small,base,large}_patch{8,16}``.
"""

from . import bands, datasets, evaluation, masking, models, tasks, transforms
from ._version import __version__
from .datasets import SyntheticSentinel2, SyntheticSentinel2DataModule
from .tasks import SIGMAETask
from .transforms import PatchSaliency

__all__ = (
    'PatchSaliency',
    'SIGMAETask',
    'SyntheticSentinel2',
    'SyntheticSentinel2DataModule',
    '__version__',
    'bands',
    'datasets',
    'evaluation',
    'masking',
    'models',
    'tasks',
    'transforms',
)
