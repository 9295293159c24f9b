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
    """On bark-beetle damage, in everything else alike."""
    root = real_data('barkbeetle')
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / 'examples')
    # The command line warns where it is given arguments beside those of the process.
    monkeypatch.setattr(sys, 'argv', sys.argv[:1])
    from benchmarks.finetune import run

    config = ROOT / 'examples' / 'segment_barkbeetle.yaml'
    pretrained, random = (
        run(
            config,
            weights,
            0,
            [
                f'--data.init_args.root={root}',
                f'--data.init_args.weights={ENCODER}',
                '--model.init_args.model=segformer',
                '--model.init_args.freeze_backbone=true',
            ],
        )['test_iou_positive']
        for weights in (str(ENCODER), 'null')
    )
    assert pretrained > random
    # Damage everywhere would be 0.15.
    assert random > 0.2
