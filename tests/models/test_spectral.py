# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""S2MAE's and SatMAE's encoders: what they compute, and how weights reach them."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.downstream import torchgeo_task
from torchgeo_sigmae.bands import LANDSAT8, SENTINEL2_BANDS, BandSet
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS as TEN
from torchgeo_sigmae.callbacks.layers import parameter_groups
from torchgeo_sigmae.masking import random_mask, sample_noise
from torchgeo_sigmae.models import MaskedAutoencoder, S2MAEViT, SatMAEViT, build_encoder
from torchgeo_sigmae.models.embeddings import group_bands
from torchgeo_sigmae.models.mae import encode_visible, layout_of
from torchgeo_sigmae.models.positions import sincos_1d
from torchgeo_sigmae.models.spectral import SpectralViT
from torchgeo_sigmae.models.tokens import gather_tokens
from torchgeo_sigmae.optim import build_optimizer
from torchgeo_sigmae.weights import Weights, load_weights, write_weights

pytestmark = pytest.mark.usefixtures('narrow_models')

S2MAE, SATMAE = 's2mae_vit_tiny_patch8', 'satmae_vit_tiny_patch8'
SIGMAE = 'sigmae_vit_tiny_patch8'
GROUPS = ((3, 0), (1,), (5, 2, 4))

#: Encoders of every kind: class, channels, arguments.
KINDS: list[tuple[type[SpectralViT], int, dict[str, Any]]] = [
    (S2MAEViT, 10, {}),
    (S2MAEViT, 12, {}),
    (S2MAEViT, 12, {'cube_bands': 4}),
    (S2MAEViT, 3, {}),
    (S2MAEViT, 7, {'cube_bands': 1}),
    (S2MAEViT, 10, {'positions': 'vanilla'}),
    (S2MAEViT, 10, {'positions': 'sincos', 'pre_norm': True}),
    (S2MAEViT, 10, {'class_token': False}),
    (S2MAEViT, 10, {'reg_tokens': 2, 'no_embed_class': True}),
    (SatMAEViT, 10, {}),
    (SatMAEViT, 6, {'groups': GROUPS}),
    (SatMAEViT, 4, {}),
    (SatMAEViT, 10, {'positions': 'vanilla'}),
    (SatMAEViT, 10, {'positions': 'sincos'}),
]
every_kind = pytest.mark.parametrize(
    ('kind', 'channels', 'arguments'),
    KINDS,
    ids=[f'{kind.__name__}-{c}-{"-".join(a)}' for kind, c, a in KINDS],
)


def narrow(kind: type[SpectralViT], channels: int, **arguments: Any) -> SpectralViT:
    """Two narrow blocks, every tensor random, positions included."""
    encoder = kind(
        patch_size=8,
        in_chans=channels,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=0,
        **{
            'img_size': 32,
            'global_pool': 'avg',
            'fc_norm': False,
            'dynamic_img_size': True,
            **arguments,
        },
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    return encoder.eval()


def all_tokens(encoder: SpectralViT, image: Tensor) -> Tensor:
    """The oracle: the whole image, block by block, nothing pooled."""
    x = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(image)))
    return encoder.norm(encoder.blocks(x))


# -------------------------------------------------------------------- what it computes


@every_kind
@pytest.mark.parametrize('grid', [(4, 4), (2, 5), (3, 3)])
@torch.no_grad()
def test_masked_path_equals_the_full_path_on_visible_tokens(
    kind: type[SpectralViT],
    channels: int,
    arguments: dict[str, Any],
    grid: tuple[int, int],
) -> None:
    encoder = narrow(kind, channels, **arguments)
    layout = layout_of(encoder)
    assert layout == encoder.layout
    image = torch.randn(2, channels, 8 * grid[0], 8 * grid[1])
    count = layout.num_groups * grid[0] * grid[1]
    # All tokens visible, in any order, equals the full encoder.
    keep = torch.stack([torch.randperm(count) for _ in range(2)])
    full, prefix = all_tokens(encoder, image), encoder.num_prefix_tokens
    expected = torch.cat([full[:, :prefix], gather_tokens(full[:, prefix:], keep)], 1)
    actual = encode_visible(encoder, layout.patchify(image), keep, grid)
    assert len(actual) == 2
    torch.testing.assert_close(actual[-1], expected, rtol=1e-4, atol=1e-4)
    # Some visible: embedded as in the whole image, then they go on alone.
    keep = keep[:, : max(count // 3, 1)]
    x = encoder._pos_embed(encoder.patch_embed(image))
    x = torch.cat([x[:, :prefix], gather_tokens(x[:, prefix:], keep)], 1)
    expected = encoder.norm(encoder.blocks(encoder.norm_pre(x)))
    # What is hidden has no influence, nor what pads small groups.
    hidden = torch.ones(2, count, 1, dtype=torch.bool)
    hidden = hidden.scatter(1, keep[..., None], False)
    padding = ~layout.slots().repeat_interleave(count // layout.num_groups, 0)
    patches = layout.patchify(image).masked_fill(hidden, torch.nan)
    patches = patches.masked_fill(padding & ~hidden, 1e3)
    actual = encode_visible(encoder, patches, keep, grid)[-1]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('channels', 'depth'), [(10, 2), (12, 3), (12, 6), (5, 1)])
@torch.no_grad()
def test_cubes_are_embedded_by_a_3d_convolution(channels: int, depth: int) -> None:
    embed = narrow(S2MAEViT, channels, cube_bands=depth).patch_embed
    assert embed.proj.kernel_size == embed.proj.stride == (depth, 8, 8)
    image = torch.randn(2, channels, 16, 24)
    expected = F.conv3d(
        image.unsqueeze(1), embed.proj.weight, embed.proj.bias, stride=(depth, 8, 8)
    )
    # (B, D, G, h, w)
    actual = embed(image)
    assert actual.shape == (2, channels // depth, 2, 3, 16)
    torch.testing.assert_close(actual.movedim(-1, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('channels', 'groups'), [(10, None), (13, None), (6, GROUPS), (3, [[0, 1, 2]])]
)
@torch.no_grad()
def test_groups_are_embedded_by_2d_convolutions(channels: int, groups: Any) -> None:
    encoder = narrow(SatMAEViT, channels, groups=groups)
    weight, bias = encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias
    image = torch.randn(2, channels, 16, 24)
    if groups is None:
        groups = {
            10: [[0, 1, 2, 6], [3, 4, 5, 7], [8, 9]],
            13: [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12]],
        }[channels]
    assert [sorted(group) for group in groups] == [
        list(group) for group in encoder.layout.groups
    ]
    expected = [
        F.conv2d(image[:, list(group)], weight[:, list(group)], bias, stride=8)
        for group in groups
    ]
    actual = encoder.patch_embed(image).movedim(-1, 2)
    torch.testing.assert_close(actual, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)


@every_kind
@torch.no_grad()
def test_features_are_the_mean_over_the_spectrum(
    kind: type[SpectralViT], channels: int, arguments: dict[str, Any]
) -> None:
    encoder = narrow(kind, channels, **arguments)
    groups, prefix = encoder.layout.num_groups, encoder.num_prefix_tokens
    image = torch.randn(2, channels, 24, 40)
    tokens = all_tokens(encoder, image)
    mean = sum(
        tokens[:, prefix + 15 * g : prefix + 15 * (g + 1)] for g in range(groups)
    )
    expected = torch.cat([tokens[:, :prefix], mean / groups], dim=1)
    actual = encoder.forward_features(image)
    assert actual.shape == (2, prefix + 15, 16)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    # A head sees the mean over space and spectrum.
    torch.testing.assert_close(
        encoder(image), tokens[:, prefix:].mean(1), rtol=1e-4, atol=1e-5
    )


@every_kind
@torch.no_grad()
def test_intermediate_features(
    kind: type[SpectralViT], channels: int, arguments: dict[str, Any]
) -> None:
    encoder = narrow(kind, channels, **arguments)
    groups, prefix = encoder.layout.num_groups, encoder.num_prefix_tokens
    image = torch.randn(2, channels, 24, 40)
    x = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(image)))
    heads, maps = [], []
    for block in encoder.blocks:
        x = block(x)
        heads.append(x[:, :prefix])
        maps.append(x[:, prefix:].unflatten(1, (groups, 3, 5)).mean(1))

    last, levels = encoder.forward_intermediates(image)
    torch.testing.assert_close(last, encoder.forward_features(image))
    for level, expected in zip(levels, maps, strict=True):
        torch.testing.assert_close(level, expected.movedim(-1, 1))
        assert level.is_contiguous()
    levels = encoder.forward_intermediates(
        image,
        indices=1,
        output_fmt='NLC',
        intermediates_only=True,
        return_prefix_tokens=True,
    )
    assert len(levels) == 1
    if prefix:
        torch.testing.assert_close(levels[0], (maps[1].flatten(1, 2), heads[1]))
    else:
        torch.testing.assert_close(levels[0], maps[1].flatten(1, 2))
    (normed,) = encoder.forward_intermediates(
        image, [0], norm=True, stop_early=True, intermediates_only=True
    )
    x = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(image)))
    x = encoder.norm(encoder.blocks[0](x))[:, prefix:]
    expected = x.unflatten(1, (groups, 3, 5)).mean(1).movedim(-1, 1)
    torch.testing.assert_close(normed, expected)


@every_kind
@pytest.mark.parametrize('prefix', [False, True])
@torch.no_grad()
def test_intermediate_features_as_a_dictionary(
    kind: type[SpectralViT], channels: int, arguments: dict[str, Any], prefix: bool
) -> None:
    encoder = narrow(kind, channels, **arguments)
    image = torch.randn(2, channels, 24, 40)
    options = {'indices': 2, 'return_prefix_tokens': prefix}
    last, levels = encoder.forward_intermediates(image, **options)
    actual = encoder.forward_intermediates(image, output_dict=True, **options)
    assert torch.equal(actual.pop('image_features'), last)
    maps = actual.pop('image_intermediates')
    heads = actual.pop('image_intermediates_prefix', None)
    assert not actual
    # An encoder without prefix tokens returns none.
    assert (heads is not None) == (prefix and encoder.num_prefix_tokens > 0)
    expected = list(zip(maps, heads, strict=True)) if heads else maps
    torch.testing.assert_close(expected, levels, rtol=0, atol=0)
    actual = encoder.forward_intermediates(
        image, output_dict=True, intermediates_only=True, **options
    )
    assert 'image_features' not in actual


@pytest.mark.parametrize('name', [S2MAE, SATMAE])
@torch.no_grad()
def test_the_pyramid_ends_in_the_plain_feature(name: str) -> None:
    model = smp.encoders.get_encoder(name, in_channels=12, depth=3).eval()
    image = torch.randn(1, 12, 24, 40)
    tokens = model.forward_features(image)[:, 1:]
    levels = model(image)
    expected = tokens.transpose(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(levels[-1], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(levels[0], image)
    assert model.out_channels == [12, 32 + 12 * 4, 32 + 12 * 16, 32]
    assert [level.shape[1] for level in levels] == model.out_channels
    # Patches over the edge are padded.
    assert model(torch.randn(1, 12, 21, 33))[-1].shape == (1, 32, 3, 5)


# --------------------------------------------------------------------------- positions


def test_sines_and_cosines_against_a_loop() -> None:
    table = sincos_1d(50, 12)
    for position in range(50):
        for i in range(6):
            angle = position / 10000 ** (i / 6)
            assert table[position, i] == pytest.approx(math.sin(angle), abs=1e-4)
            assert table[position, 6 + i] == pytest.approx(math.cos(angle), abs=1e-4)


@pytest.mark.parametrize('name', [S2MAE, SATMAE])
def test_positions_are_separable_and_start_as_sines_and_cosines(name: str) -> None:
    learnable = build_encoder(name, 10, 32)
    fixed = build_encoder(name, 10, 32, positions='sincos')
    assert learnable.pos_embed.requires_grad
    assert learnable.spectral_embed.requires_grad
    assert not fixed.pos_embed.requires_grad
    assert not fixed.spectral_embed.requires_grad
    for key in ('pos_embed', 'spectral_embed'):
        assert torch.equal(getattr(learnable, key), getattr(fixed, key))
    actual = learnable.token_positions((4, 4)).unflatten(0, (-1, 4, 4))
    for g in range(learnable.layout.num_groups):
        for row in range(4):
            for column in range(4):
                spatial = learnable.pos_embed[0, 1 + 4 * row + column]
                expected = spatial + learnable.spectral_embed[0, g]
                assert torch.equal(actual[g, row, column], expected)
    # No two tokens are alike.
    assert torch.cdist(*2 * [actual.flatten(0, 2)]).fill_diagonal_(1).min() > 1e-2
    if name == SATMAE:
        assert not learnable.pos_embed[..., 24:].any()
        assert not learnable.spectral_embed[..., :24].any()
        assert torch.equal(learnable.spectral_embed[0, :, 24:], sincos_1d(3, 8))
    else:
        assert torch.equal(learnable.spectral_embed[0], sincos_1d(5, 32))


@pytest.mark.parametrize('name', [S2MAE, SATMAE])
def test_vanilla_positions_count_the_tokens(name: str) -> None:
    encoder = build_encoder(name, 10, 32, positions='vanilla')
    count = 6 * encoder.layout.num_groups
    assert torch.equal(encoder.token_positions((2, 3)), sincos_1d(count, 32))
    trained = {key for key, p in encoder.named_parameters() if p.requires_grad}
    assert not trained & {'pos_embed', 'spectral_embed'}
    assert not encoder.pos_embed.any()


@pytest.mark.parametrize(('kind', 'channels'), [(S2MAEViT, 10), (SatMAEViT, 10)])
def test_weights_bring_their_kind_of_positions(
    kind: type[SpectralViT], channels: int
) -> None:
    image = torch.randn(2, channels, 32, 32)
    vanilla = narrow(kind, channels, positions='vanilla')
    learnable = narrow(kind, channels)
    loaded = narrow(kind, channels)
    loaded.load_state_dict(vanilla.state_dict())
    assert torch.equal(loaded(image), vanilla(image))
    # What is not used is not trained: distributed training waits for its gradient.
    assert not loaded.pos_embed.requires_grad
    assert not loaded.spectral_embed.requires_grad
    loaded.load_state_dict(learnable.state_dict())
    assert torch.equal(loaded(image), learnable(image))
    assert loaded.pos_embed.requires_grad
    assert loaded.spectral_embed.requires_grad


@pytest.mark.parametrize('positions', ['learnable', 'sincos', 'vanilla'])
@pytest.mark.parametrize('decoder', ['cross', 'self'])
@pytest.mark.parametrize('kind', [S2MAEViT, SatMAEViT])
def test_gradients_reach_every_parameter(
    kind: type[SpectralViT], decoder: str, positions: str
) -> None:
    encoder = narrow(kind, 10, positions=positions).train()
    model = MaskedAutoencoder(encoder, decoder, 32, 2, 4)
    count = 16 * encoder.layout.num_groups
    mask = random_mask(sample_noise(0, torch.arange(2), count), 0.75)
    image = torch.randn(2, 10, 32, 32)
    out = model(image, mask.keep, mask.masked)
    assert out.shape == (2, mask.masked.shape[1], encoder.layout.token_size)
    out.square().mean().backward()
    silent = [
        key
        for key, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert silent == []
    learned = {key for key, _ in model.named_parameters() if 'spectral_embed' in key}
    assert ('decoder.spectral_embed' in learned) == (positions == 'learnable')
    assert model.encoder.spectral_embed.requires_grad == (positions == 'learnable')


@pytest.mark.parametrize('decoder', ['cross', 'self'])
@pytest.mark.parametrize('positions', ['learnable', 'vanilla'])
@pytest.mark.parametrize('kind', [S2MAEViT, SatMAEViT])
@torch.no_grad()
def test_order_of_tokens_does_not_matter_and_groups_do(
    kind: type[SpectralViT], positions: str, decoder: str
) -> None:
    encoder = narrow(kind, 10, positions=positions)
    model = MaskedAutoencoder(encoder, decoder, 32, 2, 4).eval()
    positions = 20  # another image than it was built for
    count = positions * encoder.layout.num_groups
    mask = random_mask(sample_noise(0, torch.arange(2), count), 0.75)
    image = torch.randn(2, 10, 32, 40)
    expected = model(image, mask.keep, mask.masked)
    actual = model(image, mask.keep.flip(1), mask.masked.flip(1)).flip(1)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    # One patch position, two groups: two predictions.
    keep, predicted = torch.arange(1, positions)[None], torch.tensor([[0, positions]])
    one, other = model(image[:1], keep, predicted)[0]
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize('kind', [S2MAEViT, SatMAEViT])
@torch.no_grad()
def test_every_group_of_satmae_has_its_head(kind: type[SpectralViT]) -> None:
    model = MaskedAutoencoder(narrow(kind, 10), 'cross', 32, 1, 4).eval()
    layout = model.layout
    heads = layout.num_groups if kind is SatMAEViT else 1
    assert model.decoder.head.out_features == heads * layout.token_size
    x = torch.randn(1, 4, 32)
    predicted = torch.tensor(
        [[0, 17, 5, 31]]
    )  # groups 0, 1, 0, 1 of 16 patch positions
    actual = model.decoder.predict(x, predicted, (4, 4))
    out = model.decoder.head(model.decoder.norm(x)).unflatten(-1, (heads, -1))
    for token, group in enumerate((0, 1, 0, 1)):
        expected = out[0, token, min(group, heads - 1)]
        assert torch.equal(actual[0, token], expected)


# ----------------------------------------------------------------------------- weights


def random_file(path: Path, name: str, channels: int = 10, **arguments: Any) -> Tensor:
    """A file whose every tensor is random; returns its tensors."""
    encoder = build_encoder(name, channels, 64, **arguments)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    write_weights(Weights(encoder.state_dict(), info={'model': name}), path)
    return dict(encoder.state_dict())


#: Tasks of TorchGeo that use the encoder in different ways.
TASKS = ('classification', 'unet', 'upernet', 'fcsiamdiff', 'changevit')


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize(
    ('name', 'channels', 'arguments'),
    [
        (S2MAE, 12, {'cube_bands': 2}),
        (SATMAE, 10, {'groups': [[9, 0, 4], [1], [2, 3, 5, 6, 7, 8]]}),
    ],
)
def test_every_tensor_arrives_through_torchgeo(
    tmp_path: Path, task: str, name: str, channels: int, arguments: dict[str, Any]
) -> None:
    path = tmp_path / 'encoder.pth'
    saved = random_file(path, name, channels, **arguments)
    made = torchgeo_task(task, name, channels, str(path))
    loaded = getattr(made.model, 'encoder', made.model)
    actual = loaded.state_dict()
    assert set(actual) - set(saved) <= {'head.weight', 'head.bias'}
    assert {'spectral_embed', 'joint_positions', 'pos_embed'} <= set(saved)
    side = math.isqrt(actual['pos_embed'].shape[1])
    for key, value in saved.items():
        if key == 'pos_embed':
            # Plain ViTs are built for a size; these are of 8 x 8 tokens.
            value = timm.layers.resample_abs_pos_embed(value, [side, side], [8, 8])
        assert torch.equal(actual[key], value), key
    # What is computed is what was saved.
    encoder = build_encoder(name, channels, 8 * side, **arguments).eval()
    encoder.load_state_dict(saved)
    assert loaded.layout == encoder.layout
    image = torch.randn(1, channels, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.eval().forward_features(image),
            encoder.forward_features(image),
            rtol=1e-3,
            atol=1e-4,
        )


@pytest.mark.parametrize('task', ['classification', 'unet', 'changevit'])
def test_torchgeo_refuses_weights_of_other_bands(tmp_path: Path, task: str) -> None:
    """Its loader sees one input channel in both, that of the 3-D convolution."""
    random_file(tmp_path / 'x.pth', S2MAE, 12)
    with pytest.raises(ValueError, match=r'made for 12 bands .*in_channels=12'):
        torchgeo_task(task, S2MAE, 9, str(tmp_path / 'x.pth'))


def test_torchgeo_refuses_weights_of_other_encoders(tmp_path: Path) -> None:
    random_file(tmp_path / 'x.pth', SIGMAE)
    random_file(tmp_path / 'y.pth', SATMAE)
    for task in ('classification', 'unet', 'fcsiamdiff'):
        with (
            pytest.warns(UserWarning, match='input channels 1 != input channels')
            if task == 'classification'
            else nullcontext(),
            pytest.raises(ValueError, match='Use the model name'),
        ):
            torchgeo_task(task, S2MAE, 10, str(tmp_path / 'x.pth'))
        # SatMAE's first layer is shaped as a plain ViT's: the positions tell.
        with pytest.raises(ValueError, match='this encoder has positions in the spec'):
            torchgeo_task(task, SATMAE, 10, str(tmp_path / 'x.pth'))
        with pytest.raises(ValueError, match='this encoder has no positions in the sp'):
            torchgeo_task(task, SIGMAE, 10, str(tmp_path / 'y.pth'))


@pytest.mark.parametrize('strict', [True, False])
def test_other_numbers_of_bands_are_refused(strict: bool) -> None:
    state = narrow(S2MAEViT, 12).state_dict()
    for channels in (9, 6, 15):
        with pytest.raises(
            ValueError,
            match=f'made for 12 bands in cubes of 3, but this encoder takes {channels}',
        ):
            narrow(S2MAEViT, channels).load_state_dict(dict(state), strict=strict)
    state = narrow(SatMAEViT, 10).state_dict()
    with pytest.raises(ValueError, match=r'\(16, 12, 8, 8\).*Pass in_channels=10'):
        narrow(SatMAEViT, 12).load_state_dict(state, strict=strict)


@pytest.mark.parametrize('strict', [True, False])
def test_encoders_do_not_take_each_others_weights(strict: bool) -> None:
    sigmae = build_encoder(SIGMAE, 10, 32).state_dict()
    s2mae = build_encoder(S2MAE, 10, 32).state_dict()
    with pytest.raises(ValueError, match='Use the model name and the bands'):
        build_encoder(S2MAE, 10, 32).load_state_dict(dict(sigmae), strict=strict)
    with pytest.raises(ValueError, match='Use the model name and the bands'):
        build_encoder(SIGMAE, 10, 32).load_state_dict(dict(s2mae), strict=strict)
    with pytest.raises(ValueError, match=r'32, 1, 2, 8, 8.*has one of shape'):
        build_encoder(S2MAE, 10, 32).load_state_dict(
            build_encoder(SATMAE, 10, 32).state_dict(), strict=strict
        )
    satmae = build_encoder(SATMAE, 10, 32).state_dict()
    with pytest.raises(ValueError, match=r'has no positions in the spectrum .spect'):
        build_encoder(SIGMAE, 10, 32).load_state_dict(satmae, strict=strict)
    for state, name in ((sigmae, SATMAE), (s2mae, S2MAE)):
        state.pop('spectral_embed', None)
        with pytest.raises(ValueError, match=r'has positions in the spectrum .*none'):
            build_encoder(name, 10, 32).load_state_dict(state, strict=strict)


def test_width_mismatch_says_what_to_change(tmp_path: Path) -> None:
    random_file(tmp_path / 'x.pth', S2MAE)
    with pytest.raises(ValueError, match='has width 32'):
        torchgeo_task(
            'classification', 's2mae_vit_small_patch8', 10, str(tmp_path / 'x.pth')
        )
    random_file(tmp_path / 'y.pth', SATMAE)
    with pytest.raises(ValueError, match='has width 32'):
        torchgeo_task('unet', 'satmae_vit_small_patch8', 10, str(tmp_path / 'y.pth'))
    encoder = build_encoder('s2mae_vit_small_patch8', 10, 32)
    with pytest.raises(ValueError, match=f"was made for model='{S2MAE}' and does not"):
        load_weights(encoder, tmp_path / 'x.pth')


@pytest.mark.parametrize(
    ('kind', 'channels', 'arguments'),
    [
        *((S2MAEViT, 12, {'cube_bands': depth}) for depth in (1, 4, 6, 12)),
        # In any order: the channels of each group are sorted.
        (SatMAEViT, 6, {'groups': GROUPS}),
    ],
)
def test_an_encoder_takes_over_the_layout_of_the_weights(
    kind: type[SpectralViT], channels: int, arguments: dict[str, Any]
) -> None:
    source = narrow(kind, channels, **arguments)
    loaded = narrow(kind, channels)
    assert loaded.layout != source.layout
    loaded.load_state_dict(source.state_dict())
    assert loaded.layout == source.layout
    image = torch.randn(2, channels, 32, 48)
    assert torch.equal(loaded(image), source(image))
    loaded(image).sum().backward()
    assert loaded.spectral_embed.grad.shape == (1, source.layout.num_groups, 16)


@pytest.mark.parametrize(('kind', 'channels'), [(S2MAEViT, 10), (SatMAEViT, 10)])
def test_positions_of_another_image_size_are_interpolated(
    kind: type[SpectralViT], channels: int
) -> None:
    source = narrow(kind, channels)
    target = narrow(kind, channels, img_size=48)
    target.load_state_dict(source.state_dict())
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, [6, 6], [4, 4])
    assert torch.equal(target.pos_embed, expected)
    assert torch.equal(target.spectral_embed, source.spectral_embed)
    # Large images are computed alike before and after.
    image = torch.randn(1, channels, 48, 48)
    torch.testing.assert_close(source(image), target(image), rtol=1e-4, atol=1e-5)
    state = source.state_dict()
    state['pos_embed'] = state['pos_embed'][:, :12]
    with pytest.raises(ValueError, match='11 position embeddings do not form a square'):
        target.load_state_dict(state)


@pytest.mark.parametrize('name', [S2MAE, SATMAE])
def test_set_in_channels(name: str) -> None:
    model = smp.encoders.get_encoder(name, in_channels=10)
    first = model.patch_embed.proj
    model.set_in_channels(10)
    assert model.patch_embed.proj is first
    model.set_in_channels(12, pretrained=False)
    assert model.layout.channels == model.out_channels[0] == 12
    fresh = build_encoder(name, 12, 96)
    for key in ('pos_embed', 'spectral_embed'):
        assert torch.equal(getattr(model, key), getattr(fresh, key))
    assert model.spectral_embed.requires_grad
    assert model(torch.randn(1, 12, 32, 32))[-1].shape == (1, 32, 1, 1)


# ------------------------------------------------------------------------ optimization


@pytest.mark.parametrize('name', [S2MAE, SATMAE])
@pytest.mark.parametrize('dense', [False, True])
def test_positions_in_the_spectrum_learn_as_the_lowest_layer(
    name: str, dense: bool
) -> None:
    task = torchgeo_task('unet' if dense else 'classification', name)
    names = {id(p): key for key, p in task.named_parameters()}
    groups = parameter_groups(task, 1.0, 0.05, 0.5)
    actual = {names[id(p)]: group for group in groups for p in group['params']}
    assert set(actual) == set(names.values())
    part = 'model.encoder.' if dense else 'model.'
    for key in ('spectral_embed', 'pos_embed', 'cls_token', 'patch_embed.proj.bias'):
        assert actual[f'{part}{key}']['lr'] == pytest.approx(0.5**13), key
        assert actual[f'{part}{key}']['weight_decay'] == 0, key
    kernel = actual[f'{part}patch_embed.proj.weight']
    assert kernel['lr'] == pytest.approx(0.5**13)
    assert kernel['weight_decay'] == 0.05
    assert 'spectral_embed' in build_encoder(name, 10, 32).no_weight_decay()


@pytest.mark.parametrize('kind', [S2MAEViT, SatMAEViT])
def test_positions_do_not_decay_in_pretraining(kind: type[SpectralViT]) -> None:
    model = MaskedAutoencoder(narrow(kind, 10), 'cross', 32, 1, 4)
    optimizer = build_optimizer([model.encoder, model.decoder], 1e-3, 0.05)
    names = {id(p): key for key, p in model.named_parameters()}
    decays = {
        names[id(p)]
        for group in optimizer.param_groups
        for p in group['params']
        if group['weight_decay']
    }
    assert 'encoder.patch_embed.proj.weight' in decays
    assert not [key for key in decays if key.endswith(('_embed', '_token'))]


# ------------------------------------------------------------------- names and refusals


def test_groups_by_name() -> None:
    assert group_bands(TEN) == [[0, 1, 2, 6], [3, 4, 5, 7], [8, 9]]
    # What SatMAE leaves out is a separate group.
    assert group_bands(SENTINEL2_BANDS)[-1] == [0, 9, 10]
    assert group_bands(('B12', 'B04', 'B11')) == [[1], [0, 2]]
    given = group_bands(('B02', 'B08', 'B11'), groups=[('nir',), ('blue', 'B11')])
    assert given == [[1], [0, 2]]
    # Landsat's near infrared is as near as B8A.
    landsat = group_bands(BandSet(('B2', 'B3', 'B4', 'B5', 'B6', 'B7'), LANDSAT8))
    assert landsat == [[0, 1, 2], [3], [4, 5]]
    for groups in ([('B02',)], [('B02', 'B08'), ('B08', 'B11')]):
        with pytest.raises(ValueError, match=r'groups: .* must name each of the band'):
            group_bands(('B02', 'B08', 'B11'), groups=groups)


@pytest.mark.parametrize(
    ('name', 'channels', 'arguments', 'message'),
    [
        (S2MAE, 10, {'cube_bands': 3}, r'3 does not divide 10 .*\[1, 2, 5, 10\]'),
        (S2MAE, 10, {'cube_bands': 0}, 'cube_bands: 0 does not divide 10'),
        (S2MAE, 13, {}, r'13 bands cannot be cut .*down to 12.*\[1, 13\]'),
        (S2MAE, 10, {'positions': 'rope'}, "positions: 'rope' is unknown. Use one of"),
        (SATMAE, 4, {'groups': [[0, 1], [3]]}, 'must hold each of the 4 channels once'),
        (SATMAE, 4, {'groups': [[0, 1], [1, 2, 3]]}, 'groups: .* once'),
        (SATMAE, 4, {'groups': [[0, 1], [2, 4]]}, 'groups: .* once'),
    ],
)
def test_what_cannot_be_built(
    name: str, channels: int, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(name, channels, 32, **arguments)


@pytest.mark.parametrize('kind', [S2MAEViT, SatMAEViT])
def test_a_wrong_number_of_channels_is_refused(kind: type[SpectralViT]) -> None:
    encoder = narrow(kind, 12)
    with pytest.raises(ValueError, match='image: 9 channels, but the encoder takes 12'):
        encoder(torch.randn(1, 9, 32, 32))
    model = MaskedAutoencoder(encoder, 'self', 16, 1, 2)
    keep = torch.tensor([[0]])
    with pytest.raises(ValueError, match='image: 9 channels, but the encoder takes 12'):
        model(torch.randn(1, 9, 32, 32), keep, keep)
