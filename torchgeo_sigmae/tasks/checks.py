# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Checks of a task before it starts: arguments, precisions and datamodules."""

import math

from lightning.pytorch import Trainer

from ..bands import BandSet
from ..datamodules.inspect import normalizes
from ..masking.masks import check_band_dropout, check_predict_ratio
from .targets import TARGETS

__all__ = ('check_arguments', 'check_normalizer', 'check_precision')


def check_arguments(
    bands: BandSet,
    in_channels: int | None,
    target: str,
    spectral_weight: float,
    predict_ratio: float,
    band_dropout: float,
) -> None:
    """Refuse arguments of the task that are out of range, or contradict its bands."""
    if in_channels not in {None, len(bands)}:
        raise ValueError(
            f'in_channels: {in_channels} for {len(bands)} bands {list(bands)}. Leave '
            'in_channels out, or name as many bands.'
        )
    check_predict_ratio(predict_ratio)
    check_band_dropout(band_dropout, len(bands))
    if target not in TARGETS:
        raise ValueError(
            f'target: {target!r} is unknown. Use one of {", ".join(TARGETS)}.'
        )
    if not 0 <= spectral_weight < math.inf:
        raise ValueError(
            f'spectral_weight: {spectral_weight} must be 0 or more, and finite; 0 '
            'predicts pixels alone.'
        )


def check_precision(trainer: Trainer) -> None:
    """Refuse a precision in which batches would not be float32."""
    precision = str(trainer.precision)
    if precision.endswith('-true') and precision != '32-true':
        mixed = 'bf16-mixed' if precision != '64-true' else '32-true'
        raise ValueError(
            f'precision: {precision!r} would compute indices and normalization in '
            f'another precision than float32. Pass precision={mixed!r} to the Trainer.'
        )


def check_normalizer(normalize: bool | None, datamodule: object) -> None:
    """Require that one, and only one, of task and datamodule normalizes batches."""
    if normalizes(datamodule):
        if normalize:
            raise ValueError(
                f'batch.normalize: True, but {type(datamodule).__name__} normalizes '
                'its batches already. Leave normalize out.'
            )
    elif normalize is None:
        raise ValueError(
            'batch.normalize: not known whether batches come raw or normalized, since '
            'no TorchGeo datamodule that normalizes them is attached. Pass '
            'batch=BatchSpec(normalize=True, ...) if they come raw, normalize=False if '
            '(raw - mean) / std was applied already, or attach the datamodule.'
        )
