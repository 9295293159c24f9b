# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What pretraining taught an encoder that is not trained any further."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.dense_probe import cover_accuracy, damage_precision
from torchgeo_sigmae.evaluation import BandStatistics, FrozenEncoder


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_a_frozen_pretrained_encoder_beats_a_frozen_random_one(
    real_data: Callable[[str], Path],
) -> None:
    """On land cover and on bark-beetle damage, patch by patch."""
    data = real_data('barkbeetle').parent
    real_data('landcover')
    pretrained = FrozenEncoder.load('SIGMAE_Weights.SENTINEL2', depth=12)
    torch.manual_seed(0)
    random = pretrained.untrained()
    assert random is not None
    (cover, damage), *others = (
        (
            cover_accuracy(encoder, data, repeats=1).mean(),
            damage_precision(encoder, data).mean(),
        )
        for encoder in (pretrained, random, BandStatistics(pretrained.bands))
    )
    # Half of what the model card says: another CPU, other folds.
    for (other_cover, other_damage), least in zip(others, (0.01, 0.05), strict=True):
        assert cover - other_cover > least
        assert damage - other_damage > 0.06
