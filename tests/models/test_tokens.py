# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import torch
from lightly.models import utils

from torchgeo_sigmae.models import masked_mse, normalize_patches
from torchgeo_sigmae.models.tokens import gather_tokens, scatter_tokens


def test_normalize_patches_agrees_with_lightly() -> None:
    patches = torch.randn(2, 5, 48) * 3 + 1
    ours, mean, std = normalize_patches(patches)
    torch.testing.assert_close(ours, utils.normalize_mean_var(patches))
    torch.testing.assert_close(ours * std + mean, patches)
    all_valid = torch.ones_like(patches, dtype=torch.bool)
    torch.testing.assert_close(normalize_patches(patches, all_valid)[0], ours)


def test_normalize_patches_sees_valid_pixels_only() -> None:
    patches = torch.randn(2, 5, 48)
    valid = torch.rand(2, 5, 48) > 0.4
    ours, _, _ = normalize_patches(torch.where(valid, patches, 1e6), valid)
    for i in range(2):
        for j in range(5):
            x = patches[i, j][valid[i, j]]
            expected = (x - x.mean()) / (x.var() + 1e-6).sqrt()
            torch.testing.assert_close(ours[i, j][valid[i, j]], expected)
    empty = normalize_patches(patches, torch.zeros_like(valid))
    assert all(x.isfinite().all() for x in empty)


def test_gather_and_scatter() -> None:
    tokens = torch.rand(2, 6, 3)
    index = torch.tensor([[4, 1], [0, 5]])
    picked = gather_tokens(tokens, index)
    torch.testing.assert_close(picked[1, 1], tokens[1, 5])
    # Expanded and not contiguous, as masks are.
    flags = torch.tensor([True, False]).expand(2, 6, 2)
    assert torch.equal(gather_tokens(flags, index), flags[:, :2])
    back = scatter_tokens(torch.zeros_like(tokens), index, picked)
    torch.testing.assert_close(back[0, 4], tokens[0, 4])
    assert (back[0, 0] == 0).all()


def test_masked_mse() -> None:
    prediction = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    target = torch.tensor([0.0, 0.0, torch.nan])
    loss = masked_mse(prediction, target, torch.tensor([True, True, False]))
    loss.backward()
    assert loss.item() == 2.5
    torch.testing.assert_close(prediction.grad, torch.tensor([1.0, 2.0, 0.0]))
    prediction = torch.rand(3, requires_grad=True)
    nothing = masked_mse(prediction, target, torch.zeros(3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    assert torch.equal(prediction.grad, torch.zeros(3))


def test_masked_mse_without_a_mask_is_the_same_to_the_bit() -> None:
    target = torch.randn(4, 13, 64)
    results = []
    for valid in (None, torch.ones_like(target, dtype=torch.bool)):
        prediction = torch.arange(target.numel()).sin().view_as(target).requires_grad_()
        loss = masked_mse(prediction, target, valid)
        loss.backward()
        results.append((loss, prediction.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_masked_mse_leaves_out_what_does_not_count() -> None:
    """Whatever it is: NaN less NaN is not 0."""
    for odd in (torch.nan, torch.inf, -torch.inf):
        prediction = torch.tensor([1.0, odd], requires_grad=True)
        target = torch.tensor([0.0, odd])
        loss = masked_mse(prediction, target, torch.tensor([True, False]))
        loss.backward()
        assert loss.item() == 1
        assert torch.equal(prediction.grad, torch.tensor([2.0, 0.0]))
