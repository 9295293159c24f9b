# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import re
from functools import cache

import pytest
import timm
import torch
from torch import Tensor

from torchgeo_sigmae.models import SIGMAEViT, build_encoder
from torchgeo_sigmae.models.mae import encode_visible
from torchgeo_sigmae.models.tokens import gather_tokens
from torchgeo_sigmae.patches import patchify

#: Ours, plain, with registers and no class position, without a class token, with a
#: normalization before the blocks, and a size whose positions must be interpolated.
NAMES = (
    'sigmae_vit_tiny_patch8',
    'vit_tiny_patch16_224',
    'vit_small_patch14_reg4_dinov2',
    'vit_base_patch16_siglip_224',
    'vit_base_patch32_clip_224',
)


@cache
def small(name: str, size: int) -> timm.models.VisionTransformer:
    encoder = build_encoder(name, 4, size)
    encoder.blocks = encoder.blocks[:2]
    return encoder.eval()


def visible(encoder, image: Tensor, keep: Tensor) -> Tensor:
    patch = encoder.patch_embed.patch_size[0]
    grid = image.shape[-2] // patch, image.shape[-1] // patch
    return encode_visible(encoder, patchify(image, patch), keep, grid)[-1]


def patch_size(name: str) -> int:
    return int(re.findall(r'patch(\d+)', name)[0])


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_all_visible_equals_timms_forward_features(name: str) -> None:
    patch, shape = patch_size(name), (6, 3)
    encoder = small(name, 4 * patch)
    image = torch.randn(2, 4, shape[0] * patch, shape[1] * patch)
    tokens = shape[0] * shape[1]
    keep = torch.stack([torch.randperm(tokens) for _ in range(2)])
    expected = encoder.forward_features(image)
    prefix = encoder.num_prefix_tokens
    expected = torch.cat(
        [expected[:, :prefix], gather_tokens(expected[:, prefix:], keep)], dim=1
    )
    torch.testing.assert_close(
        visible(encoder, image, keep), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_masked_path_equals_the_full_path_on_visible_tokens(name: str) -> None:
    patch = patch_size(name)
    encoder = small(name, 4 * patch)
    image = torch.randn(2, 4, 4 * patch, 4 * patch)
    keep = torch.stack([torch.randperm(16)[:5] for _ in range(2)])
    # The oracle: timm embeds the whole image, then only visible tokens go on.
    x = encoder._pos_embed(encoder.patch_embed(image))
    prefix = encoder.num_prefix_tokens
    x = torch.cat([x[:, :prefix], gather_tokens(x[:, prefix:], keep)], dim=1)
    x = encoder.norm_pre(x)
    turns = encoder.rotation((4, 4), keep) if isinstance(encoder, SIGMAEViT) else None
    for block in encoder.blocks:
        x = block(x, attn_mask=turns)
    expected = encoder.norm(x)
    torch.testing.assert_close(
        visible(encoder, image, keep), expected, rtol=1e-4, atol=1e-4
    )
    # What is hidden has no influence.
    mask = torch.zeros(2, 16, 1, dtype=torch.bool).scatter(1, keep[..., None], True)
    patches = torch.where(mask, patchify(image, patch), torch.nan)
    actual = encode_visible(encoder, patches, keep, (4, 4))[-1]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('family', ['sigmae', 's2mae', 'satmae'])
def test_the_probed_feature_is_the_fine_tuned_one(family: str) -> None:
    name = f'{family}_vit_tiny_patch8'
    model = timm.create_model(name, num_classes=3, in_chans=4, img_size=32).eval()
    image = torch.randn(2, 4, 32, 32)
    pooled = model.forward_head(model.forward_features(image), pre_logits=True)
    expected = model.forward_features(image)[:, 1:].mean(dim=1)
    torch.testing.assert_close(pooled, expected)


def test_learnable_positions_start_as_sines_and_cosines() -> None:
    encoder = build_encoder(NAMES[0], 4, 32, positions='learnable')
    assert (encoder.pos_embed[:, 0] == 0).all()
    squares = encoder.pos_embed[0, 1:].square().sum(dim=1)
    torch.testing.assert_close(squares, torch.full((16,), 192 / 2.0))


def test_positions_of_another_grid_are_resampled() -> None:
    source = build_encoder(NAMES[0], 4, 64, positions='learnable')
    target = build_encoder(NAMES[0], 4, 32)
    state = source.state_dict()
    target.load_state_dict(dict(state))
    assert target.pos_embed.shape == (1, 17, 192)
    torch.testing.assert_close(target.pos_embed[:, 0], source.pos_embed[:, 0])
    same = build_encoder(NAMES[0], 4, 64)
    same.load_state_dict(dict(state))
    assert torch.equal(same.pos_embed, source.pos_embed)
    state['pos_embed'] = state['pos_embed'][:, :12]
    with pytest.raises(ValueError, match='11 position embeddings do not form a square'):
        target.load_state_dict(state)


@torch.no_grad()
@pytest.mark.parametrize('positions', ['rotary', 'learnable'])
def test_weights_decide_about_positions(positions: str) -> None:
    encoder = build_encoder(NAMES[0], 4, 32, positions=positions).eval()
    image = torch.randn(2, 4, 32, 32)
    for start in ('rotary', 'learnable'):
        other = build_encoder(NAMES[0], 4, 32, positions=start).eval()
        other.load_state_dict(encoder.state_dict(), strict=True)
        assert other.positions == positions
        assert torch.equal(other(image), encoder(image))


@torch.no_grad()
def test_rotary_features_move_with_the_image() -> None:
    encoder = build_encoder(NAMES[0], 4, 64, class_token=False).eval()
    patches = torch.randn(1, 64, 4 * 64)
    seen = torch.tensor([[9, 10, 20, 27]])
    moved = patches.roll(17, dims=1)
    tokens = encode_visible(encoder, patches, seen, (8, 8))[-1]
    torch.testing.assert_close(
        encode_visible(encoder, moved, seen + 17, (8, 8))[-1], tokens
    )
    # Other neighbors make other tokens.
    other = patches.roll(16, dims=1)
    apart = encode_visible(encoder, other, seen + 16, (8, 8))[-1]
    torch.testing.assert_close(apart, tokens)
    nearer = encode_visible(encoder, patches[:, [*range(64)]], seen, (16, 4))[-1]
    assert not torch.allclose(nearer, tokens, atol=1e-3)


def test_rotary_positions_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match=r'^positions: .none. is unknown'):
        timm.create_model(NAMES[0], positions='none')
    with pytest.raises(ValueError, match=r"^patch_drop_rate: 0.5 .*'learnable'"):
        timm.create_model(NAMES[0], patch_drop_rate=0.5)
    with pytest.raises(ValueError, match=r'^attn_mask: our encoders take none'):
        build_encoder(NAMES[0], 4, 32).forward_features(
            torch.randn(1, 4, 32, 32), attn_mask=torch.zeros(17, 17)
        )


@pytest.mark.parametrize('strict', [True, False])
def test_a_foreign_first_layer_is_refused(strict: bool) -> None:
    state = build_encoder(NAMES[0], 4, 32).state_dict()
    wrong = build_encoder(NAMES[0], 10, 32)
    with pytest.raises(ValueError, match=r'\(192, 10, 8, 8\).*shape \(192, 4, 8, 8\)'):
        wrong.load_state_dict(dict(state), strict=strict)
    del state['patch_embed.proj.weight']
    with pytest.raises(ValueError, match='the state dict has none'):
        wrong.load_state_dict(state, strict=strict)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('resnet50', "model: 'resnet50' is not a plain timm VisionTransformer"),
        ('vit_small_r26_s32_224', 'is not a plain timm VisionTransformer'),
        ('sigmae_vit_smal_patch8', r"Did you mean one of \['sigmae_vit_small_patch8'"),
        ('deit_tiny_distilled_patch16_224', 'is not a plain timm VisionTransformer'),
        ('?', "model: '\\?' is not a timm model. Use for example"),
    ],
)
def test_other_models_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(name, 4, 64)


def test_size_must_be_a_multiple_of_the_patch() -> None:
    with pytest.raises(ValueError, match=r'size: 8 is a single patch .*size=16'):
        build_encoder('sigmae_vit_tiny_patch8', 4, 8)
    with pytest.raises(ValueError, match='size: 0 must be a positive number'):
        build_encoder('sigmae_vit_tiny_patch8', 4, 0)
    with pytest.raises(ValueError, match=r'size: 60 is not a multiple .* 8 .*size=56'):
        build_encoder('sigmae_vit_tiny_patch8', 4, 60)
