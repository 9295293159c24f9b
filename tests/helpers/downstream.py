# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo's tasks on an encoder."""

from typing import Any

from torchgeo_sigmae._compat import (
    BaseTask,
    ChangeDetection,
    Classification,
    PixelwiseRegression,
    Regression,
    SemanticSegmentation,
)


def torchgeo_task(
    kind: str, encoder: str, channels: int = 10, weights: Any = None, **options: Any
) -> BaseTask:
    """A task of TorchGeo: of images, or the one whose model is called *kind*."""
    shared = {'in_channels': channels, 'weights': weights, **options}
    match kind:
        case 'classification':
            return Classification(encoder, **{'num_classes': 2, **shared})
        case 'regression':
            return Regression(encoder, **shared)
        case 'pixelwise':
            return PixelwiseRegression('unet', encoder, **shared)
        case 'fcsiamdiff' | 'changevit':
            return ChangeDetection(kind, encoder, **shared)
        case _:
            return SemanticSegmentation(kind, encoder, **{'num_classes': 2, **shared})
