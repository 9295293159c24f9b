# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules."""

from .scenes import SceneDataModule

__all__ = ('SceneDataModule',)
