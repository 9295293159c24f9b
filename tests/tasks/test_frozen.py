# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What pretraining taught an encoder that is not trained any further."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENCODER = ROOT / 'tests' / 'data' / 'encoder.pth'


def test_a_frozen_pretrained_encoder_beats_a_frozen_random_one(
    real_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On bark-beetle damage, under the decoder of SegFormer."""
    root = real_data('barkbeetle')
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / 'examples')
    # The command line warns where it is given arguments beside those of the process.
    monkeypatch.setattr(sys, 'argv', sys.argv[:1])
    from benchmarks.finetune import run

    config = ROOT / 'examples' / 'segment_barkbeetle.yaml'
    own = f'--data.init_args.weights={ENCODER}'
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
        for weights, normalisation in ((str(ENCODER), [own]), ('null', []))
    )
    assert pretrained > random
    # Damage everywhere would be 0.15.
    assert random > 0.2
