# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Files of the first edition load, with equal tensors."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import helpers.small_models  # noqa: F401
from helpers.training import small_task
from torchgeo_sigmae._compat import Classification
from torchgeo_sigmae.weights import read_weights

FOLDER = Path(__file__).parents[1] / 'data' / 'first_edition'
EXPECTED = json.loads((FOLDER / 'expected.json').read_text())
every_file = pytest.mark.parametrize('name', EXPECTED)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    actual = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        actual.update(f'{key} {value.dtype} {tuple(value.shape)}'.encode())
        actual.update(value.contiguous().numpy().tobytes())
    return actual.hexdigest()


@every_file
def test_tensors_and_information_are_equal(name: str) -> None:
    weights = read_weights(FOLDER / name)
    assert digest(weights.encoder) == EXPECTED[name]['encoder']
    assert digest(weights.decoder) == EXPECTED[name]['decoder']
    assert weights.info == EXPECTED[name]['info']


@every_file
def test_our_task_goes_on(name: str) -> None:
    weights = read_weights(FOLDER / name)
    family = weights.info['ssl_method']
    task = small_task(
        family,
        model=f'{family}_vit_test_patch8',
        weights=str(FOLDER / name),
        decoder_dim=16,
        masking='random',
    )
    assert task.history == weights.info['trained_on']
    assert digest(task.model.encoder.state_dict()) == EXPECTED[name]['encoder']
    decoder = task.model.decoder.state_dict()
    if weights.decoder:
        # Its keys had no positions.
        assert not decoder.pop('blocks.0.k_position.weight').any()
        assert digest(decoder) == EXPECTED[name]['decoder']


@every_file
def test_torchgeos_task_loads(name: str) -> None:
    weights = read_weights(FOLDER / name)
    task = Classification(
        weights.info['model'], str(FOLDER / name), in_channels=10, num_classes=2
    )
    state = task.model.state_dict()
    assert all(torch.equal(state[key], v) for key, v in weights.encoder.items())
