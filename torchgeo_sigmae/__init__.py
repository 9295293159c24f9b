# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Masked-autoencoder pretraining for multispectral imagery, inside TorchGeo.

Importing the package registers our encoders with timm, segmentation-models-pytorch and
TorchGeo, under the names ``sigmae_vit_{tiny,small,base,large}_patch{8,16}``.
"""

from . import (
    bands,
    datasets,
    evaluation,
    masking,
    models,
    plotting,
    resume,
    tasks,
    transforms,
)
from ._version import __version__
from .datasets import (
    SceneDataModule,
    SyntheticSentinel2,
    SyntheticSentinel2DataModule,
)
from .evaluation import PositiveClassMetrics
from .models import SIGMAE_Weights, adapt_bands
from .resume import ResumableCheckpoint, resumable
from .tasks import FineTuning, SIGMAETask
from .transforms import BitemporalAugmentation, PatchSaliency, bitemporal

__all__ = (
    'BitemporalAugmentation',
    'FineTuning',
    'PatchSaliency',
    'PositiveClassMetrics',
    'ResumableCheckpoint',
    'SIGMAETask',
    'SIGMAE_Weights',
    'SceneDataModule',
    'SyntheticSentinel2',
    'SyntheticSentinel2DataModule',
    '__version__',
    'adapt_bands',
    'bands',
    'bitemporal',
    'datasets',
    'evaluation',
    'masking',
    'models',
    'plotting',
    'resumable',
    'resume',
    'tasks',
    'transforms',
)
