# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The only file that knows TorchGeo's versions differ."""

from contextlib import suppress
from importlib.metadata import version

try:  # torchgeo >= 0.10
    from torchgeo.tasks import (
        BaseTask,
        ChangeDetection,
        Classification,
        PixelwiseRegression,
        Regression,
        SemanticSegmentation,
    )
except ImportError:  # torchgeo 0.8 and 0.9
    from torchgeo.trainers import BaseTask
    from torchgeo.trainers import ChangeDetectionTask as ChangeDetection
    from torchgeo.trainers import ClassificationTask as Classification
    from torchgeo.trainers import PixelwiseRegressionTask as PixelwiseRegression
    from torchgeo.trainers import RegressionTask as Regression
    from torchgeo.trainers import SemanticSegmentationTask as SemanticSegmentation

with suppress(ImportError):  # torchgeo >= 0.10: known by name on the command line
    import torchgeo.profilers  # noqa: F401

__all__ = (
    'TORCHGEO_VERSION',
    'BaseTask',
    'ChangeDetection',
    'Classification',
    'PixelwiseRegression',
    'Regression',
    'SemanticSegmentation',
)

#: Installed version of TorchGeo.
TORCHGEO_VERSION: str = version('torchgeo')
