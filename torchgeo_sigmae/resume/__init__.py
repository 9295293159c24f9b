# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Interrupted runs that continue as if nothing had happened."""

from .checkpoint import ResumableCheckpoint, newest_checkpoint
from .data import is_resumable, resumable

__all__ = ('ResumableCheckpoint', 'is_resumable', 'newest_checkpoint', 'resumable')
