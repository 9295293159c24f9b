# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Masked-autoencoder pretraining for multispectral imagery, inside TorchGeo.

Importing the package registers our encoders with timm, segmentation-models-pytorch and
TorchGeo, under the names ``sigmae_vit_{tiny,small,base,large}_patch{8,16}``.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__

__all__ = (
    'BatchSpec',
    'BitemporalAugmentation',
    'FineTuning',
    'FiniteGuard',
    'Guidance',
    'PackedDataModule',
    'PatchSaliency',
    'PositiveClassMetrics',
    'ResumableCheckpoint',
    'SIGMAETask',
    'SIGMAE_Weights',
    'SceneDataModule',
    'SyntheticSentinel2',
    'SyntheticSentinel2DataModule',
    '__version__',
    'adapt_bands',
    'bands',
    'bitemporal',
    'callbacks',
    'datamodules',
    'datasets',
    'evaluation',
    'masking',
    'models',
    'plotting',
    'resumable',
    'tasks',
    'transforms',
    'weights',
)


def _is_command_line() -> bool:
    """Return whether this is ``torchgeo-sigmae`` or ``python -m torchgeo_sigmae``."""
    program = sys.argv[0] if sys.argv else ''
    # Python replaces the -m once the package is imported.
    module = program == '-m' and __name__ in sys.orig_argv
    return module or Path(program).stem == 'torchgeo-sigmae'


# The command line answers --help at once: a command imports what it needs.
if TYPE_CHECKING or not _is_command_line():
    from ._public import *


def __getattr__(name: str) -> Any:
    """Import the public names when the command line needs the first of them."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from . import _public

    return getattr(_public, name)
