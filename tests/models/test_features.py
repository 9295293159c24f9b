# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Features by timm's functions, and in half precision."""

from typing import Any

import pytest
import timm
import torch

import torchgeo_sigmae.models  # noqa: F401

FAMILIES = ('sigmae', 's2mae', 'satmae')


def model(family: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    size = {'img_size': 32, 'num_classes': 0}
    return timm.create_model(f'{family}_vit_tiny_patch8', **size, **kwargs).eval()


@pytest.mark.parametrize('family', FAMILIES)
@torch.no_grad()
def test_features_only(family: str) -> None:
    encoder = model(family)
    maps = model(family, features_only=True, out_indices=(2, 5, -1))
    maps.model.load_state_dict(encoder.state_dict(), strict=False)
    assert maps.feature_info.channels() == [192] * 3
    assert maps.feature_info.reduction() == [8] * 3
    image = torch.randn(2, 10, 40, 24)
    actual = maps(image)
    last, expected = encoder.forward_intermediates(image, indices=[2, 5, 11])
    assert [tuple(one.shape) for one in actual] == [(2, 192, 5, 3)] * 3
    assert all(map(torch.equal, actual, expected))
    assert torch.equal(last, encoder.forward_features(image))
    (normed,) = encoder.forward_intermediates(
        image, indices=1, norm=True, output_fmt='NLC', intermediates_only=True
    )
    torch.testing.assert_close(normed, last[:, encoder.num_prefix_tokens :])
    torch.testing.assert_close(normed.mean(dim=1), encoder(image))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(family: str, kind: torch.dtype) -> None:
    encoder = model(family)
    image = torch.randn(2, 10, 32, 32)
    expected = encoder(image)
    with torch.autocast('cpu', kind):
        mixed = encoder(image)
    encoder.to(kind)
    actual = encoder(image.to(kind))
    assert actual.dtype == kind
    # Relative to the spread of the features; float16 has eight times the precision.
    allowed = 0.01 if kind == torch.float16 else 0.05
    for one in (mixed, actual):
        error = (one.float() - expected).square().mean().sqrt()
        assert error < allowed * expected.std(), float(error / expected.std())
    features = encoder.forward_intermediates(image.to(kind), indices=1)[1][0]
    assert features.dtype == kind
