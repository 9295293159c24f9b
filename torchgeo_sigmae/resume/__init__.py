# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Interrupted runs that continue as if nothing had happened."""

from .checkpoint import ResumableCheckpoint, newest_checkpoint
from .data import ResumableMixin, resumable

__all__ = ('ResumableCheckpoint', 'ResumableMixin', 'newest_checkpoint', 'resumable')
