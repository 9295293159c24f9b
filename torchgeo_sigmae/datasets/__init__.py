# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets and datamodules."""

from .synthetic import SyntheticSentinel2, SyntheticSentinel2DataModule

__all__ = ('SyntheticSentinel2', 'SyntheticSentinel2DataModule')
