# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The only file that knows TorchGeo's versions differ."""

from contextlib import suppress
from importlib.metadata import version

try:  # torchgeo >= 0.10
    from torchgeo.tasks import BaseTask, Classification
except ImportError:  # torchgeo 0.8 and 0.9
    from torchgeo.trainers import BaseTask
    from torchgeo.trainers import ClassificationTask as Classification

with suppress(ImportError):  # torchgeo >= 0.10: known by name on the command line
    import torchgeo.profilers  # noqa: F401

__all__ = ('TORCHGEO_VERSION', 'BaseTask', 'Classification')

#: Installed version of TorchGeo.
TORCHGEO_VERSION: str = version('torchgeo')
