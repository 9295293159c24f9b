# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The rows of the recipe benchmark."""

import pytest

from benchmarks.recipe import AXES, arguments_of, beta_for, key_of, make_task


@pytest.mark.parametrize('axis', list(AXES))
def test_every_row_is_a_task(axis: str) -> None:
    for change in AXES[axis].values():
        if change.get('size', 64) == 64 and 'small' not in change.get('model', ''):
            task = make_task(arguments_of(change), seed=0)
            assert task.hparams['masking'] == change.get('masking', 'random')
    assert len({key_of(change) for change in AXES[axis].values()}) == len(AXES[axis])


def test_guidance_reaches_the_asked_favor() -> None:
    assert 0 < beta_for(4, 0.75) < beta_for(16, 0.75)
    guidance = arguments_of(AXES['masking']['guided'])['guidance']
    assert guidance == {'strength': (0.0, beta_for(4, 0.75))}
