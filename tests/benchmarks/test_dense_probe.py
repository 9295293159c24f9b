# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What pretraining taught an encoder that is not trained any further."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.dense_probe import cover_accuracy, damage_precision
from torchgeo_sigmae.evaluation import BandStatistics, FrozenEncoder


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_a_frozen_pretrained_encoder_tells_more_than_its_bands(
    real_data: Callable[[str], Path],
) -> None:
    """On land cover and on bark-beetle damage, patch by patch."""
    data = real_data('barkbeetle').parent
    real_data('landcover')
    pretrained = FrozenEncoder.load('SIGMAE_Weights.SENTINEL2', depth=12)
    bands = BandStatistics(pretrained.bands)
    cover, other_cover = (
        cover_accuracy(encoder, data, repeats=1).mean()
        for encoder in (pretrained, bands)
    )
    damage, other_damage = (
        damage_precision(encoder, data).mean() for encoder in (pretrained, bands)
    )
    # Half of what the model card says: another CPU, other folds.
    assert cover - other_cover > 0.02
    assert damage - other_damage > 0.05
