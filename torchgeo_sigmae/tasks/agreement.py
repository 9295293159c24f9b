# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Whether pretrained weights and the data they meet speak of the same bands."""

import os
from pathlib import Path
from typing import Any

from ..bands import get_sensor
from ..models.checkpoint import read_encoder
from ..models.weights import PackagedWeights, find_weights
from .statistics import datamodule_bands

__all__ = ('check_bands',)


def check_bands(weights: object, datamodule: object) -> None:
    """Refuse data of as many bands as the weights, but others or in another order.

    TorchGeo's tasks know the number of bands, not their names, so such weights load,
    and what they have learned about one band is applied to another. Another *number* of
    bands is TorchGeo's to refuse: it may be that something selects from them later.

    Args:
        weights: What a task of TorchGeo takes as ``weights``.
        datamodule: The datamodule, or None.

    Raises:
        ValueError: If the bands are not those the weights were made for. Nothing is
            raised where the file or the datamodule tells no bands, or the datamodule
            others than the sensor of the weights has.
    """
    told = datamodule_bands(datamodule)
    if not told:
        return
    known = _known(weights)
    made_for = known.get('bands')
    if not made_for or len(told) != len(made_for):
        return
    try:
        sensor = get_sensor(known.get('sensor') or 'sentinel2')
    except ValueError:  # a sensor of the user's own
        return
    expected, found = sensor.spell(made_for), sensor.spell(told)
    if expected == found or not all(map(sensor.find, found)):
        return
    name, bands = type(datamodule).__name__, ' '.join(found)
    raise ValueError(
        f'weights: {str(weights)!r} was made for the bands {list(expected)}, but '
        f'{name} gives {list(found)}. Pass bands={list(expected)} to {name}, or write '
        f'a file for its bands: torchgeo-sigmae adapt-bands {weights} --bands {bands} '
        '-o adapted.pth'
    )


def _known(weights: object) -> dict[str, Any]:
    """What is known about weights of ours; nothing about those of others."""
    if isinstance(weights, str) and not os.path.exists(weights):
        try:
            weights = find_weights(weights)
        except FileNotFoundError:
            return {}
    if isinstance(weights, PackagedWeights):
        return dict(weights.meta)
    if not isinstance(weights, str | Path):
        return {}
    try:
        return read_encoder(weights).hyper_parameters
    except ValueError:  # a file of another format, which TorchGeo may take
        return {}
