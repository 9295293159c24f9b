# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from torchgeo_sigmae.masking import random_mask, sample_noise
from torchgeo_sigmae.models import MaskedAutoencoder, build_encoder
from torchgeo_sigmae.models.decoders import CrossDecoder, SelfDecoder, _attend_last
from torchgeo_sigmae.models.mae import fast_attention


def model(decoder: str, name: str = 'sigmae_vit_tiny_patch8') -> MaskedAutoencoder:
    return MaskedAutoencoder(build_encoder(name, 4, 32), decoder, 32, 2, 4)


def masked(batch: int = 2, tokens: int = 16):
    return random_mask(sample_noise(0, torch.arange(batch), tokens), 0.75)


@pytest.mark.parametrize('decoder', ['cross', 'self'])
@pytest.mark.parametrize(
    'name',
    ['sigmae_vit_tiny_patch8', 'vit_base_patch32_clip_224', 'vit_tiny_patch16_224'],
)
def test_gradients_reach_every_parameter(decoder: str, name: str) -> None:
    mae = model(decoder, name) if 'sigmae' in name else None
    if mae is None:
        encoder = build_encoder(name, 4, 128)
        encoder.blocks = encoder.blocks[:3]
        mae = MaskedAutoencoder(encoder, decoder, 32, 2, 4)
    size = mae.encoder.patch_embed.img_size[0]
    image = torch.randn(2, 4, size, size)
    mask = masked(2, mae.encoder.patch_embed.num_patches)
    mae(image, mask.keep, mask.masked).square().mean().backward()
    silent = [
        key
        for key, p in mae.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert silent == []


@pytest.mark.parametrize('decoder', ['cross', 'self'])
@torch.no_grad()
def test_order_of_tokens_does_not_matter(decoder: str) -> None:
    mae = model(decoder).eval()
    image, mask = torch.randn(2, 4, 32, 32), masked()
    expected = mae(image, mask.keep, mask.masked)
    actual = mae(image, mask.keep.flip(1), mask.masked.flip(1)).flip(1)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_last_block_of_self_decoder_is_timms() -> None:
    decoder = SelfDecoder(16, 1, 8, 32, 2, 4)
    x = torch.randn(2, 7, 32, requires_grad=True)
    weights = torch.randn(2, 3, 32)
    block = decoder.blocks[-1]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    results = []
    for out in (block(x)[:, -3:], _attend_last(block, x, 3)):
        leaves = [x, *block.parameters()]
        gradients = torch.autograd.grad((out * weights).sum(), leaves)
        results.append([out, *gradients])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cross_decoder_predicts_each_token_by_itself() -> None:
    mae = model('cross').eval()
    image, mask = torch.randn(2, 4, 32, 32), masked()
    expected = mae(image, mask.keep, mask.masked)[:, :3]
    actual = mae(image, mask.keep, mask.masked[:, :3])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('decoder', ['cross', 'self'])
@torch.no_grad()
def test_positions_tell_hidden_tokens_apart(decoder: str) -> None:
    mae = model(decoder).eval()
    mask = masked()
    out = mae(torch.randn(2, 4, 32, 32), mask.keep, mask.masked)
    assert out.std(dim=1).mean() > 1e-3
    # and hidden pixels have no influence on their own prediction
    image = torch.randn(1, 4, 32, 32)
    changed = image.clone()
    keep, hidden = torch.tensor([[0, 1, 2, 3]]), torch.arange(4, 16)[None]
    changed[:, :, 8:] += 5
    torch.testing.assert_close(
        mae(image, keep, hidden), mae(changed, keep, hidden), rtol=0, atol=0
    )


def test_mix_starts_as_the_last_depth() -> None:
    decoder = CrossDecoder(16, 3, 8, 8, 2, 2)
    features = [torch.randn(1, 5, 16) for _ in range(3)]
    keep, predicted = torch.arange(4)[None], torch.arange(4, 9)[None]
    expected = decoder(features, keep, predicted, (3, 3))
    other = [torch.randn(1, 5, 16), torch.randn(1, 5, 16), features[2]]
    torch.testing.assert_close(decoder(other, keep, predicted, (3, 3)), expected)
    with torch.no_grad():
        decoder.mix[:, 0] = 1
    assert not torch.allclose(decoder(other, keep, predicted, (3, 3)), expected)


def test_equal_tokens_at_different_positions_are_told_apart() -> None:
    torch.manual_seed(0)
    decoder = CrossDecoder(16, 1, 8, 8, 2, 2)
    feature = torch.randn(1, 1, 16)
    features = torch.cat([feature, feature, torch.randn(1, 2, 16)], dim=1)
    keep, predicted = torch.tensor([[3, 12, 5, 9]]), torch.tensor([[0, 7]])

    def influence() -> torch.Tensor:
        leaf = features.clone().requires_grad_()
        decoder([leaf], keep, predicted, (4, 4)).square().sum().backward()
        return leaf.grad[0, 0] - leaf.grad[0, 1]

    assert influence().abs().max() > 1e-4
    # The positions are what tells them apart.
    for block in decoder.blocks:
        torch.nn.init.zeros_(block.k_position.weight)
    torch.testing.assert_close(influence(), torch.zeros(16), rtol=0, atol=1e-6)


@pytest.mark.parametrize('family', ['sigmae', 's2mae', 'satmae'])
@torch.no_grad()
def test_swapped_positions_change_predictions(family: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(f'{family}_vit_tiny_patch8', 10, 32)
    mae = MaskedAutoencoder(encoder, 'cross', 32, 1, 4)
    keep, predicted = torch.tensor([[1, 6, 11]]), torch.tensor([[0, 4]])
    features = [torch.randn(1, 4, encoder.embed_dim)] * len(encoder.blocks)
    expected = mae.decoder(features, keep, predicted, (4, 4))
    swapped = mae.decoder(features, keep[:, [1, 0, 2]], predicted, (4, 4))
    assert (swapped - expected).abs().max() > 1e-3


def test_decoders_of_the_first_edition_load_unchanged() -> None:
    decoder = CrossDecoder(16, 1, 8, 8, 2, 2)
    old = {
        key: value
        for key, value in decoder.state_dict().items()
        if 'k_position' not in key
    }
    decoder.load_state_dict(old)
    assert all(not block.k_position.weight.any() for block in decoder.blocks)
    with pytest.raises(RuntimeError, match=r'kv\.weight'):
        decoder.load_state_dict({k: v for k, v in old.items() if 'kv.w' not in k})


@pytest.mark.parametrize('decoder', ['cross', 'self'])
def test_spectral_statistics_follow_the_pixels(decoder: str) -> None:
    encoder = build_encoder('satmae_vit_tiny_patch8', 10, 32)
    mae = MaskedAutoencoder(encoder, decoder, 32, 1, 4, num_indices=3)
    image = torch.randn(2, 10, 32, 32)
    tokens = mae.layout.num_groups * 16
    mask = masked(2, tokens)
    out = mae(image, mask.keep, mask.masked)
    bands = mae.layout.group_size
    assert out.shape[-1] == 64 * bands + bands + 6
    out[..., 64 * bands :].square().sum().backward()
    assert mae.decoder.spectral_head.weight.grad.abs().sum() > 0
    assert not mae.decoder.head.weight.grad.any()


@pytest.mark.parametrize('decoder', ['cross', 'self'])
def test_inference_first_then_training(decoder: str) -> None:
    mae, mask = model(decoder), masked()
    image = torch.randn(2, 4, 32, 32)
    with torch.inference_mode():
        mae(image, mask.keep, mask.masked)
    mae(image, mask.keep, mask.masked).sum().backward()


@pytest.mark.parametrize('decoder', [CrossDecoder, SelfDecoder])
@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ((30, 2, 2), 'decoder_dim: 30 must be a multiple of 4'),
        ((32, 2, 5), 'decoder_num_heads=5. Use for example 20'),
        ((32, 0, 4), 'decoder_depth: 0 must be at least 1'),
    ],
)
def test_bad_decoder_sizes(decoder, sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(16, 3, 8, *sizes)


def test_bad_decoder_and_bad_input() -> None:
    with pytest.raises(ValueError, match="decoder: 'linear' is unknown"):
        model('linear')
    mae, mask = model('cross'), masked()
    with pytest.raises(ValueError, match='image: 3 channels, but the encoder takes 4'):
        mae(torch.randn(2, 3, 32, 32), mask.keep, mask.masked)
    with pytest.raises(ValueError, match='image: 32 x 30 pixels cannot be cut'):
        mae(torch.randn(2, 4, 32, 30), mask.keep, mask.masked)


@pytest.mark.parametrize('decoder', ['cross', 'self'])
def test_attention_of_half_precision_steps_on_a_cpu(
    decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfused, and the same numbers; PyTorch chooses where no gradients are needed."""
    mae, image, mask = model(decoder), torch.randn(2, 4, 32, 32), masked()
    taken: set[Any] = set()

    def fused() -> bool:
        return any('Flash' in type(node).__name__ for node in taken)

    def gradients() -> torch.Tensor:
        mae.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            out = mae(image, mask.keep, mask.masked)
        nodes = {out.grad_fn}
        while nodes:
            taken.update(nodes)
            parents = {parent for node in nodes for parent, _ in node.next_functions}
            nodes = parents - taken - {None}
        out.float().square().mean().backward()
        grads = [p.grad.flatten() for p in mae.parameters() if p.grad is not None]
        return torch.cat(grads)

    actual = gradients()
    assert not fused()
    taken.clear()
    monkeypatch.setattr(mae, 'attention', lambda image, tokens: nullcontext())
    expected = gradients()
    assert fused()
    # As far apart as roundings to 8 bits are.
    assert (actual - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize(
    ('dtype', 'bf16', 'grad', 'tokens', 'unfused'),
    [
        (torch.float32, True, True, 320, True),
        (torch.bfloat16, False, True, 5, True),
        (torch.float32, True, True, 321, False),
        (torch.float32, True, False, 5, False),
        (torch.float32, False, True, 5, False),
    ],
)
def test_attention_is_unfused_where_that_is_faster(
    dtype: torch.dtype, bf16: bool, grad: bool, tokens: int, unfused: bool
) -> None:
    image = torch.zeros(1, 4, 8, 8, dtype=dtype)
    with (
        torch.autocast('cpu', torch.bfloat16, enabled=bf16),
        torch.set_grad_enabled(grad),
        fast_attention(image, tokens),
    ):
        assert torch.backends.cuda.flash_sdp_enabled() is not unfused
    assert torch.backends.cuda.flash_sdp_enabled()
