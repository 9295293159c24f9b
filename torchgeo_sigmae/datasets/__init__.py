# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets and datamodules."""

from .chips import SceneChips
from .resumable import is_resumable, resumable
from .scene_datamodule import SceneDataModule
from .scenes import HeldScene, Scene, find_scenes
from .synthetic import SyntheticSentinel2, SyntheticSentinel2DataModule

__all__ = (
    'HeldScene',
    'Scene',
    'SceneChips',
    'SceneDataModule',
    'SyntheticSentinel2',
    'SyntheticSentinel2DataModule',
    'find_scenes',
    'is_resumable',
    'resumable',
)
