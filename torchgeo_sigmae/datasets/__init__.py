# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets and datamodules."""

from .scene_datamodule import SceneDataModule
from .scenes import Scene, SceneChips, find_scenes
from .synthetic import SyntheticSentinel2, SyntheticSentinel2DataModule

__all__ = (
    'Scene',
    'SceneChips',
    'SceneDataModule',
    'SyntheticSentinel2',
    'SyntheticSentinel2DataModule',
    'find_scenes',
)
