# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchgeo_sigmae.models import SIGMAEPyramid, build_encoder
from torchgeo_sigmae.models.pyramid import _resample
from torchgeo_sigmae.models.registry import NAMES, Architecture
from torchgeo_sigmae.weights import Weights, write_weights

TINY = 'sigmae_vit_tiny_patch8'
PATCH = {8: TINY, 16: 'sigmae_vit_tiny_patch16'}
STRIDES = (2, 4, 8, 16, 32)
#: Pixels of a cell, in the maps that hold them.
PIXELS = {2: 4, 4: 16}


def pyramid(name: str = TINY, **kwargs: Any) -> SIGMAEPyramid:
    """A pyramid of six narrow blocks: the same code, a hundredth of the time."""
    vit = {'embed_dim': 16, 'depth': 6, 'num_heads': 2, 'in_chans': 4}
    narrow = {**NAMES[name].arguments(), **vit}
    with mock.patch.object(Architecture, 'arguments', return_value=narrow):
        model = SIGMAEPyramid(name, **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    patch=st.sampled_from([8, 16]),
    depth=st.integers(1, 5),
    stride=st.sampled_from([8, 16, 32]),
)
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_any_size_gives_maps_at_the_strides(
    height: int, width: int, patch: int, depth: int, stride: int
) -> None:
    model = pyramid(PATCH[patch], depth=depth, output_stride=stride)
    image = torch.randn(1, 4, height, width)
    actual = model(image)
    assert torch.equal(actual[0], image)
    strides = [min(s, stride) for s in STRIDES[:depth]]
    assert [tuple(level.shape) for level in actual[1:]] == [
        (1, 16 + 4 * PIXELS.get(s, 0), math.ceil(height / s), math.ceil(width / s))
        for s in strides
    ]
    assert model.output_stride == strides[-1]
    assert model.out_channels == [level.shape[1] for level in actual]
    assert all(level.isfinite().all() for level in actual)


@pytest.mark.parametrize('patch', [8, 16])
@pytest.mark.parametrize('shape', [(3, 5), (12, 12)])
@torch.no_grad()
def test_deepest_map_is_the_plain_vits_feature(
    patch: int, shape: tuple[int, int]
) -> None:
    # So many levels that the coarsest is the patch grid itself.
    model = pyramid(PATCH[patch], depth=patch.bit_length() - 1)
    image = torch.randn(2, 4, shape[0] * patch, shape[1] * patch)
    tokens = model.forward_features(image)[:, 1:]
    expected = tokens.transpose(1, 2).unflatten(2, shape)
    assert torch.equal(model(image)[-1], expected)
    # The coarsest map of five is the same, averaged.
    deep = pyramid(PATCH[patch])
    deep.load_state_dict(model.state_dict())
    pooled = F.avg_pool2d(expected, 32 // patch, ceil_mode=True)
    torch.testing.assert_close(deep(image)[-1], pooled)


@torch.no_grad()
def test_maps_come_from_evenly_spaced_blocks_at_one_scale() -> None:
    model = SIGMAEPyramid(TINY)
    assert model._taken == [2, 4, 7, 9, 11]
    assert SIGMAEPyramid(TINY, depth=3)._taken == [3, 7, 11]
    model = pyramid()
    image = torch.randn(1, 4, 64, 64)
    shallow = model.forward_intermediates(
        image, indices=[model._taken[2]], intermediates_only=True, output_fmt='NLC'
    )[0]
    level = model(image)[3].flatten(2).transpose(1, 2)
    torch.testing.assert_close(level.mean(-1), torch.zeros(1, 64), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        level.var(-1, correction=0), torch.ones(1, 64), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(level, F.layer_norm(shallow, (16,)))
    # A change of the last block reaches the coarsest map alone.
    before = model(image)
    nn.init.normal_(model.blocks[-1].mlp.fc2.weight)
    after = model(image)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, True, True, True, True, False]


@torch.no_grad()
def test_padding_does_not_shift_the_maps() -> None:
    model = pyramid()
    # Where every pixel holds its column, so does every cell, on average.
    column = torch.arange(40.0).expand(1, 1, 40, 40)
    tokens = F.avg_pool2d(column, 8)
    for stride in (2, 4, 8, 16, 32):
        level = _resample(tokens, 8, stride, (40, 40))
        expected = F.avg_pool2d(column, stride, ceil_mode=True)
        inner = slice(8 // stride, -(8 // stride) or None)
        torch.testing.assert_close(level[..., inner], expected[..., inner])
    # A larger image whose right and lower part is zero is what padding makes.
    image = torch.randn(1, 4, 37, 61)
    padded = F.pad(image, (0, 3, 0, 3))
    for level, other in zip(model(image)[1:], model(padded)[1:], strict=True):
        torch.testing.assert_close(
            level, other[..., : level.shape[-2], :][..., : level.shape[-1]]
        )


@torch.no_grad()
def test_fine_maps_hold_the_pixels_of_their_cells() -> None:
    model = pyramid()
    image = torch.randn(2, 4, 22, 35)
    levels = model(image)
    for level, stride in zip(levels[1:3], (2, 4), strict=True):
        for row, column in [(0, 0), (3, 2), (level.shape[2] - 1, level.shape[3] - 1)]:
            cell = torch.zeros(2, 4, stride, stride)
            top, left = row * stride, column * stride
            seen = image[:, :, top : top + stride, left : left + stride]
            cell[:, :, : seen.shape[2], : seen.shape[3]] = seen
            assert torch.equal(level[:, 16:, row, column], cell.flatten(1))


@pytest.mark.parametrize('name', NAMES)
def test_keys_are_those_of_the_exported_encoder(name: str) -> None:
    with torch.device('meta'):
        encoder = build_encoder(name, 10, 64)
        model = smp.encoders.get_encoder(name, in_channels=10)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    exported = {key: value.shape for key, value in encoder.state_dict().items()}
    # Learnable positions have the grid of the images.
    assert shapes.pop('pos_embed', None) is None or exported.pop('pos_embed')
    assert shapes == exported
    # Nothing beside what the encoder has.
    assert dict(model.named_buffers()).keys() == dict(encoder.named_buffers()).keys()


@pytest.mark.parametrize('size', [64, 96])
@pytest.mark.parametrize('positions', ['rotary', 'learnable'])
def test_an_exported_file_loads_strictly_and_bit_by_bit(
    tmp_path: Path, size: int, positions: str
) -> None:
    encoder = build_encoder(TINY, 10, size, positions=positions).eval()
    write_weights(
        Weights(encoder.state_dict(), info={'model': TINY}), tmp_path / 'encoder.pth'
    )
    state = torch.load(tmp_path / 'encoder.pth')['state_dict']
    state = {key.removeprefix('model.'): value for key, value in state.items()}
    model = smp.encoders.get_encoder(TINY, in_channels=10, depth=3).eval()
    model.load_state_dict(state, strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key]), key
    # At the size of pretraining the features are exactly those of pretraining.
    image = torch.randn(1, 10, size, size)
    with torch.no_grad():
        tokens = encoder.forward_features(image)[:, 1:].transpose(1, 2)
        assert torch.equal(model(image)[-1].flatten(2), tokens)
    # A network that holds the encoder loads as well, its grid included.
    fresh = smp.encoders.get_encoder(TINY, in_channels=10, depth=3)
    network = nn.ModuleDict({'encoder': fresh})
    whole = {f'encoder.{key}': value for key, value in state.items()}
    network.load_state_dict(whole)
    with torch.no_grad():
        assert torch.equal(network['encoder'].eval()(image)[-1].flatten(2), tokens)


def test_a_plain_timm_encoder_of_the_same_shape_loads() -> None:
    encoder = build_encoder('vit_tiny_patch16_224', 10, 64)
    model = smp.encoders.get_encoder('sigmae_vit_tiny_patch16', in_channels=10)
    model.load_state_dict(encoder.state_dict())


def test_positions_that_are_no_square_are_refused() -> None:
    model = pyramid()
    state = model.state_dict()
    del state['rotary_positions']
    state['pos_embed'] = torch.zeros(1, 12, 16)
    with pytest.raises(ValueError, match='11 position embeddings do not form a square'):
        model.load_state_dict(state)


@pytest.mark.parametrize(
    ('encoder', 'bands', 'message'),
    [
        ('sigmae_vit_tiny_patch16', 10, 'has width 192 and patch size 16'),
        ('sigmae_vit_small_patch8', 10, 'has width 384 and patch size 8'),
        (TINY, 13, r'Pass in_channels=13 .*adapt_bands'),
        (TINY, 5, r"in_channels=5 .*'fcsiamdiff', .* one date at a time"),
    ],
)
@pytest.mark.parametrize('strict', [True, False])
def test_other_weights_are_refused(
    encoder: str, bands: int, message: str, strict: bool
) -> None:
    state = build_encoder(encoder, bands, 64).state_dict()
    model = smp.encoders.get_encoder(TINY, in_channels=10)
    with pytest.raises(ValueError, match=rf'^weights: this encoder takes .*{message}'):
        model.load_state_dict(state, strict=strict)


def test_set_in_channels() -> None:
    model = pyramid()
    first = model.patch_embed.proj
    model.set_in_channels(4)
    assert model.patch_embed.proj is first
    model.set_in_channels(3, pretrained=False)
    assert model.out_channels == [3, 16 + 3 * 4, 16 + 3 * 16, 16, 16, 16]
    assert model(torch.randn(1, 3, 32, 32))[-1].shape == (1, 16, 1, 1)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model: 'resnet50' is not one of \['sigmae_"):
        SIGMAEPyramid('resnet50')
    with pytest.raises(ValueError, match='depth: 6 maps were asked for; use 1 to 5'):
        SIGMAEPyramid(TINY, depth=6)
    with pytest.raises(ValueError, match='output_stride: 4 is not possible; use 8'):
        SIGMAEPyramid(TINY, output_stride=4)


@pytest.mark.parametrize('output_stride', [8, 16])
@pytest.mark.parametrize('patch', [8, 16])
def test_deeplab_at_both_strides(output_stride: int, patch: int) -> None:
    model = smp.DeepLabV3Plus(
        PATCH[patch],
        encoder_weights=None,
        encoder_output_stride=output_stride,
        in_channels=4,
    )
    # 72 is a multiple of 8 and not of 16: patches over the edge are padded.
    size = 9 * output_stride, 5 * output_stride
    assert model.eval()(torch.randn(1, 4, *size)).shape == (1, 1, *size)


def test_autocast_and_gradients() -> None:
    model = pyramid().train()
    with torch.autocast('cpu', torch.bfloat16):
        levels = model(torch.randn(2, 4, 48, 80))
        loss = sum(level.float().square().mean() for level in levels[1:])
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
