# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets, and the reader of rasters."""

from .chips import SceneChips
from .find import find_scenes
from .packed import PackedChips
from .resumable import is_resumable, resumable
from .scenes import RasterScene
from .synthetic import SyntheticSentinel2, SyntheticSentinel2DataModule

__all__ = (
    'PackedChips',
    'RasterScene',
    'SceneChips',
    'SyntheticSentinel2',
    'SyntheticSentinel2DataModule',
    'find_scenes',
    'is_resumable',
    'resumable',
)
