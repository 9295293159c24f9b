# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of images, masks and runs; made without pyplot, so any thread may draw.

Convention: images in, :class:`matplotlib.figure.Figure` out, to be saved with
``figure.savefig(path)``; :func:`view` writes a page for the browser. Pixels without
data are magenta.
"""

from .canvas import rgb_channels
from .curves import plot_training, read_log
from .images import plot_image, plot_indices, plot_mask, plot_saliency
from .loggers import log_figure, takes_figures
from .reconstruction import plot_mask_ratios, plot_reconstruction
from .view import view

__all__ = (
    'log_figure',
    'plot_image',
    'plot_indices',
    'plot_mask',
    'plot_mask_ratios',
    'plot_reconstruction',
    'plot_saliency',
    'plot_training',
    'read_log',
    'rgb_channels',
    'takes_figures',
    'view',
)
