# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What pretraining taught an encoder that is not trained any further."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.finetune import run

ROOT = Path(__file__).parents[2]
WEIGHTS = 'SIGMAE_Weights.SENTINEL2'


def test_a_frozen_pretrained_encoder_beats_a_frozen_random_one(
    real_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On bark-beetle damage, under the decoder of SegFormer."""
    root = real_data('barkbeetle')
    # The command line warns where it is given arguments beside those of the process.
    monkeypatch.setattr(sys, 'argv', sys.argv[:1])
    config = ROOT / 'examples' / 'segment_barkbeetle.yaml'
    own = f'--data.init_args.weights={WEIGHTS}'
    # Each with the normalisation that suits it; seeds 0 and 2 say the same, see README.
    pretrained, random = (
        run(
            config,
            weights,
            1,
            [
                f'--data.init_args.root={root}',
                '--model.init_args.model=segformer',
                '--model.init_args.freeze_backbone=true',
                *normalisation,
            ],
        )['test_iou_positive']
        for weights, normalisation in ((WEIGHTS, [own]), ('null', []))
    )
    assert pretrained > random
    # Damage everywhere would be 0.15.
    assert random > 0.2
