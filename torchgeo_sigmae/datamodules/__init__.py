# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules, and what TorchGeo's own datamodules say about their batches."""

from .scenes import SceneDataModule

__all__ = ('SceneDataModule',)
