# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules."""

from .packed import PackedDataModule
from .scenes import SceneDataModule

__all__ = ('PackedDataModule', 'SceneDataModule')
