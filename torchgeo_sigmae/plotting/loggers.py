# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures for Lightning's loggers."""

from typing import Any

from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, WandbLogger
from matplotlib.figure import Figure

__all__ = ('log_figure', 'takes_figures')


def takes_figures(logger: Logger) -> bool:
    """Return whether a logger takes figures.

    TensorBoard, Weights & Biases, MLflow and Comet do, and any logger whose
    ``experiment`` has TensorBoard's ``add_figure``.
    """
    known = isinstance(logger, CometLogger | MLFlowLogger | WandbLogger)
    return known or hasattr(_experiment(logger), 'add_figure')


def log_figure(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Send a figure to a logger; nothing happens where a logger takes none.

    In MLflow, *name* is a folder of the artifacts.
    """
    experiment = _experiment(logger)
    match logger:
        case WandbLogger():
            logger.log_image(name, [figure], step)
        case MLFlowLogger():
            # Zeros keep the files in the order of the steps.
            file = f'{name}/{step:08}.png'
            experiment.log_figure(logger.run_id, figure, file)
        case CometLogger():
            experiment.log_figure(name, figure, step=step)
        case _ if takes_figures(logger):
            experiment.add_figure(name, figure, step)


def _experiment(logger: Logger) -> Any:
    """The writer of a logger; Lightning's base class has none."""
    return getattr(logger, 'experiment', None)
