# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Everything public, imported at once: what ``import torchgeo_sigmae`` gives."""

# ruff: noqa: F401

from . import (
    bands,
    callbacks,
    datamodules,
    datasets,
    evaluation,
    masking,
    models,
    plotting,
    tasks,
    transforms,
    weights,
)
from .callbacks import (
    FineTuning,
    FiniteGuard,
    PositiveClassMetrics,
    ResumableCheckpoint,
)
from .datamodules import PackedDataModule, SceneDataModule
from .datasets import (
    SyntheticSentinel2,
    SyntheticSentinel2DataModule,
    resumable,
)
from .tasks import BatchSpec, Guidance, SIGMAETask
from .transforms import BitemporalAugmentation, PatchSaliency, bitemporal
from .weights import SIGMAE_Weights, adapt_bands
