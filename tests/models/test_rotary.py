# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Rotary positions against complex numbers, which turn by multiplication."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_sigmae.models import build_encoder
from torchgeo_sigmae.models.rotary import RotaryBlock, rotation, turn

PLACES = st.integers(0, 100)


def turned(values: np.ndarray, row: int, column: int) -> np.ndarray:
    """The oracle: pairs of values as complex numbers."""
    pairs = len(values) // 2
    speeds = math.pi / 2 * 100.0 ** -(np.arange(pairs // 2) / (pairs // 2))
    angles = np.concatenate([row * speeds, column * speeds])
    turned = (values[:pairs] + 1j * values[pairs:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag])


@given(PLACES, PLACES)
def test_pairs_turn_with_rows_and_columns(row: int, column: int) -> None:
    values = torch.randn(1, 1, 1, 32, dtype=torch.float64)
    turns = rotation(torch.tensor([row]), torch.tensor([column]), 32)
    expected = turned(values.flatten().numpy(), row, column)
    np.testing.assert_allclose(turn(values, turns).flatten(), expected, atol=1e-4)


@given(PLACES, PLACES, PLACES, PLACES)
def test_products_depend_on_the_offset_alone(
    row: int, column: int, down: int, right: int
) -> None:
    q, k = torch.randn(2, 1, 1, 2, 64)
    rows, columns = torch.tensor([0, row]), torch.tensor([0, column])
    here, there = (
        turn(q, rotation(rows + a, columns + b, 64))
        @ turn(k, rotation(rows + a, columns + b, 64)).mT
        for a, b in ((0, 0), (down, right))
    )
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


def test_prefix_tokens_do_not_turn() -> None:
    turns = rotation(torch.tensor([3, 4]), torch.tensor([1, 2]), 32, prefix=1)
    values = torch.randn(2, 3, 3, 32)
    assert turns.shape == (2, 1, 3, 32)
    assert torch.equal(turn(values, turns)[:, :, 0], values[:, :, 0])
    assert not torch.allclose(turn(values, turns)[:, :, 1:], values[:, :, 1:])


def test_no_turn_is_timm_s_block() -> None:
    block = RotaryBlock(64, 2, qkv_bias=True).eval()
    x = torch.randn(2, 5, 64)
    turns = rotation(torch.zeros(5), torch.zeros(5), 32)
    torch.testing.assert_close(block(x, attn_mask=turns), block(x))


def test_checkpoints_save_memory_and_change_nothing() -> None:
    torch.manual_seed(0)
    encoder = build_encoder('sigmae_vit_tiny_patch8', 4, 32)
    image = torch.randn(2, 4, 32, 32)
    gradients, saved = [], []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = encoder(image).square().sum()
        loss.backward()
        gradients.append(encoder.patch_embed.proj.weight.grad.clone())
        saved.append(sum(kept))
    torch.testing.assert_close(*gradients)
    assert saved[1] < 0.2 * saved[0]
