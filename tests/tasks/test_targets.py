# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Targets of tokens that stand for some bands, and the task on all of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from helpers.training import quiet_trainer as trainer
from helpers.training import small_task as task
from torchgeo_sigmae import SIGMAETask, SyntheticSentinel2
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS as TEN
from torchgeo_sigmae.masking import TokenMask, random_mask, sample_noise
from torchgeo_sigmae.models import TokenLayout
from torchgeo_sigmae.models.tokens import gather_tokens
from torchgeo_sigmae.tasks.reconstruction import fill_in
from torchgeo_sigmae.tasks.statistics import BatchStatistics
from torchgeo_sigmae.tasks.targets import TARGETS, TargetSpace, baseline_prediction
from torchgeo_sigmae.tasks.token_batch import TokenBatch, make_tokens
from torchgeo_sigmae.transforms import PatchSaliency

pytestmark = pytest.mark.usefixtures('narrow_models')

LAYOUTS = {
    'whole': TokenLayout.whole(8, 10),
    'cubes': TokenLayout.cubes(8, 10, 2),
    'groups': TokenLayout(8, ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))),
}
every_layout = pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
every_target = pytest.mark.parametrize('target', TARGETS)
either = pytest.mark.parametrize('norm_pix', [False, True])

#: Another mean and std for every band.
STATISTICS = BatchStatistics(
    data_bands=TEN,
    channels=tuple(range(10)),
    mean=tuple(1000.0 + 200 * i for i in range(10)),
    std=tuple(500.0 + 50 * i for i in range(10)),
    scale=1e-4,
    offset=-0.1,
)


def space(name: str, norm_pix: bool = False) -> TargetSpace:
    return TargetSpace(name, norm_pix, STATISTICS)


def batch(layout: TokenLayout, gap: bool = True) -> TokenBatch:
    """Two images of 24 x 32, some pixels and one whole patch of them missing."""
    image = torch.randn(2, 10, 24, 32)
    valid = torch.ones(2, 24, 32, dtype=torch.bool)
    if gap:
        valid[0, :8, :8] = False
        valid[1] = torch.rand(24, 32) > 0.3
    saliency = PatchSaliency(TEN, 8)
    return make_tokens(image, valid[:, None], STATISTICS, saliency, layout)


def values_of(layout: TokenLayout, token: int, places: int) -> list[tuple[int, slice]]:
    """The channels of a token, and where in it they stand."""
    size = layout.patch_size**2
    group = layout.groups[token // places]
    return [(c, slice(i * size, (i + 1) * size)) for i, c in enumerate(group)]


# ------------------------------------------------------------------------------ tokens


@every_layout
def test_tokens_know_what_holds_data(layout: TokenLayout) -> None:
    tokens = batch(layout)
    count = layout.num_groups * 12
    assert tokens.patches.shape == tokens.pixels.shape == (2, count, layout.token_size)
    assert tokens.valid.shape == tokens.saliency.shape == (2, count)
    # The whole first patch of the first image is missing, in every group.
    lost = torch.zeros(2, count, dtype=torch.bool)
    lost[0, ::12] = True
    assert torch.equal(tokens.valid, ~lost)
    # By loop: the pixels of the channels of a token, and no padding.
    image = tokens.image
    for sample in range(2):
        for token in range(count):
            row, column = divmod(token % 12, 4)
            rows = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
            expected = torch.zeros(layout.token_size, dtype=torch.bool)
            for channel, place in values_of(layout, token, 12):
                cut = image[sample, channel][rows].flatten()
                assert torch.equal(tokens.patches[sample, token, place], cut)
                expected[place] = cut != 0  # what is missing is 0, nothing else is
            assert torch.equal(tokens.pixels[sample, token], expected)
    # Every group of a place has the saliency of the place.
    apart = tokens.saliency.unflatten(1, (layout.num_groups, 12))
    assert (apart == apart[:, :1]).all()


# ----------------------------------------------------------------------------- targets


@every_layout
@every_target
@either
def test_decoding_undoes_encoding(
    layout: TokenLayout, target: str, norm_pix: bool
) -> None:
    tokens, targets = batch(layout), space(target, norm_pix)
    index = torch.stack([torch.randperm(tokens.valid.shape[1])[:10] for _ in range(2)])
    encoded = targets.encode(tokens, index)
    assert encoded.shape == (2, 10, layout.token_size)
    actual = targets.decode(encoded, tokens, index)
    expected = gather_tokens(tokens.patches, index)
    if target == 'unit':
        expected = expected.clamp(-2, 2)
    pixels = gather_tokens(tokens.pixels, index)
    torch.testing.assert_close(actual[pixels], expected[pixels], rtol=1e-3, atol=1e-3)


@every_layout
@every_target
def test_targets_are_what_they_are_called(layout: TokenLayout, target: str) -> None:
    tokens = batch(layout)
    index = torch.arange(tokens.valid.shape[1]).expand(2, -1)
    actual = space(target).encode(tokens, index)
    image = tokens.image
    expected = {
        'standardized': image,
        'unit': ((image + 2) / 4).clamp(0, 1),
        'reflectance': STATISTICS.reflectance(image),
    }[target]
    actual = layout.unpatchify(actual, (3, 4))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@every_layout
@every_target
def test_norm_pix_normalizes_the_valid_pixels_of_every_token(
    layout: TokenLayout, target: str
) -> None:
    tokens = batch(layout)
    index = torch.arange(tokens.valid.shape[1]).expand(2, -1)
    plain = space(target).encode(tokens, index)
    actual = space(target, norm_pix=True).encode(tokens, index)
    for sample in range(2):
        for token in range(tokens.valid.shape[1]):
            valid = tokens.pixels[sample, token]
            if not valid.any():
                continue
            values = plain[sample, token][valid].double()
            expected = (values - values.mean()) / (values.var() + 1e-6).sqrt()
            torch.testing.assert_close(
                actual[sample, token][valid].double(), expected, rtol=1e-3, atol=1e-3
            )


@every_layout
@every_target
def test_outputs_of_the_model_count_standard_deviations(
    layout: TokenLayout, target: str
) -> None:
    """A model that says what the encoder sees is right, whatever the target."""
    tokens = batch(layout)
    index = torch.arange(tokens.patches.shape[1]).expand(2, -1)
    actual = space(target).from_output(tokens.patches, tokens, index)
    unclipped = tokens.pixels & (tokens.patches.abs() < 2)  # by 'unit'
    expected = space(target).encode(tokens, index)
    torch.testing.assert_close(actual[unclipped], expected[unclipped])
    again = space(target).decode(actual, tokens, index)
    torch.testing.assert_close(again[unclipped], tokens.patches[unclipped])


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"target: 'db' is unknown\. Use one of standard"
    ):
        task(target='db')


# ---------------------------------------------------------------------------- baseline


@every_layout
@every_target
@either
def test_the_baseline_is_the_mean_of_what_is_seen(
    layout: TokenLayout, target: str, norm_pix: bool
) -> None:
    tokens, targets = batch(layout), space(target, norm_pix)
    count = tokens.valid.shape[1]
    noise = sample_noise(0, torch.arange(2), count)
    mask = random_mask(noise, 0.6, tokens.valid)
    actual = baseline_prediction(tokens, mask, targets)
    assert actual.shape == (2, mask.masked.shape[1], layout.token_size)
    encoded = targets.encode(tokens, torch.arange(count).expand(2, -1))
    for sample in range(2):
        seen: dict[int, list[Tensor]] = {channel: [] for channel in range(10)}
        for token in mask.keep[sample].tolist():
            for channel, place in values_of(layout, token, 12):
                valid = tokens.pixels[sample, token, place]
                seen[channel].append(encoded[sample, token, place][valid])
        for row, token in enumerate(mask.masked[sample].tolist()):
            for channel, place in values_of(layout, token, 12):
                expected = torch.cat(seen[channel]).double().mean()
                assert (
                    actual[sample, row, place].double().sub(expected).abs().max() < 1e-4
                )


@pytest.mark.parametrize(
    ('target', 'center'), [('standardized', [0.0] * 10), ('unit', [0.5] * 10)]
)
def test_a_group_nothing_is_seen_of_has_the_mean_of_the_training_data(
    target: str, center: list[float]
) -> None:
    layout = LAYOUTS['groups']
    tokens = batch(layout)
    mask = TokenMask(torch.arange(24).expand(2, -1), torch.arange(24, 36).expand(2, -1))
    actual = baseline_prediction(tokens, mask, space(target))
    torch.testing.assert_close(actual[..., :128], torch.full((2, 12, 128), center[0]))
    actual = baseline_prediction(tokens, mask, space('reflectance'))
    for slot, channel in enumerate((8, 9)):
        mean = STATISTICS.mean[channel] * 1e-4 - 0.1
        expected = torch.full((2, 12, 64), mean)
        torch.testing.assert_close(actual[..., 64 * slot : 64 * slot + 64], expected)


@every_layout
def test_predictions_are_put_in_their_place(layout: TokenLayout) -> None:
    tokens = batch(layout)
    count = tokens.valid.shape[1]
    mask = random_mask(sample_noise(0, torch.arange(2), count), 0.6)
    prediction = torch.full((2, mask.masked.shape[1], layout.token_size), 7.0)
    image, hidden = fill_in(tokens, mask.masked, prediction)
    assert torch.equal(image, torch.where(hidden, 7.0, tokens.image))
    expected = torch.zeros(2, 10, 3, 4, dtype=torch.bool)
    for sample in range(2):
        for token in mask.masked[sample].tolist():
            row, column = divmod(token % 12, 4)
            for channel in layout.groups[token // 12]:
                expected[sample, channel, row, column] = True
    expected = expected.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(hidden, expected)


# ---------------------------------------------------------------------------- the task

SPECTRAL = ('random', 'saliency', 'spatial', 'saliency_spatial', 'group', 'channel')
PAIRS = [
    *(('sigmae', masking) for masking in SPECTRAL[:2]),
    *((family, masking) for family in ('s2mae', 'satmae') for masking in SPECTRAL),
]
#: What else varies from pair to pair.
TURNS: list[dict[str, Any]] = [
    {'target': 'unit', 'decoder': 'self'},
    {'target': 'reflectance', 'predict_ratio': 0.5},
    {'norm_pix_loss': True},
    {'target': 'unit', 'norm_pix_loss': True, 'decoder': 'self'},
    {'mask_ratio': 0.75},
]


@pytest.fixture(scope='module')
def chips(synthetic_root: Path) -> Subset[Any]:
    """Eight chips with a gap each."""

    def gap(sample: dict[str, Any]) -> dict[str, Any]:
        image = sample['image'].clone()
        image[:, 20:30, :12] = 0
        return {'image': image}

    dataset = SyntheticSentinel2(synthetic_root, 'val', transforms=gap)
    return Subset(dataset, range(8))


@pytest.mark.parametrize(('family', 'masking'), PAIRS)
def test_every_model_trains_with_every_masking(
    family: str, masking: str, chips: Subset[Any], tmp_path: Path
) -> None:
    turn = TURNS[PAIRS.index((family, masking)) % len(TURNS)]
    made = task(family, masking=masking, **turn)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    run.fit(made, DataLoader(chips, 4), DataLoader(chips, 4))
    logged = {key: float(value) for key, value in run.callback_metrics.items()}
    assert {'train_loss', 'val_loss', 'val_baseline_loss', 'mask_ratio'} <= set(logged)
    odd = {key for key, value in logged.items() if not torch.tensor(value).isfinite()}
    assert odd == set()
    assert ('visibility_ratio' in logged) == masking.startswith('saliency')
    assert all(p.isfinite().all() for p in made.parameters())

    raw = torch.stack([chip['image'] for chip in chips])[:3]
    actual = made.reconstruct(raw)
    shape = (3, 64, 64) if family == 'sigmae' else (3, 10, 64, 64)
    assert actual['mask'].shape == shape
    assert actual['saliency'].shape == (3, 8, 8)
    hidden = actual['mask'] if family != 'sigmae' else actual['mask'].unsqueeze(1)
    ratio = made.mask_schedule.ratio_at(1.0)
    if masking in ('random', 'saliency', 'spatial', 'saliency_spatial', 'group'):
        tokens = made.model.layout.patchify(hidden.expand_as(raw))
        share = tokens[..., 0].float().mean().item()
        assert share == pytest.approx(ratio, abs=0.02)
    missing = actual['image'].isnan()
    assert missing[:, :, 20:30, :12].all()
    seen = ~hidden & ~missing
    torch.testing.assert_close(
        actual['reconstruction'][seen], (raw * 1e-4)[seen], rtol=1e-3, atol=1e-5
    )
    assert made.plot(actual).axes


@pytest.mark.parametrize(
    ('family', 'arguments', 'message'),
    [
        ('sigmae', {'cube_bands': 2}, r'cube_bands=2 means nothing .*s2mae_vit_small'),
        ('satmae', {'cube_bands': 2}, 'cube_bands=2 means nothing to model=.satmae_'),
        ('sigmae', {'groups': [TEN]}, r'groups=.* means nothing .*satmae_vit_small'),
        ('s2mae', {'groups': [TEN]}, 'groups=.* means nothing to model=.s2mae_'),
        (
            'sigmae',
            {'positions': 'sincos'},
            "positions: 'sincos' is unknown. Use one of",
        ),
        ('s2mae', {'positions': 'rope'}, "positions: 'rope' is unknown"),
        ('s2mae', {'cube_bands': 3}, 'cube_bands: 3 does not divide 10 bands'),
        ('satmae', {'groups': [TEN[1:]]}, 'groups: .* must name each of the bands'),
        ('satmae', {'groups': [('VV',)]}, 'groups: .* must name each of the bands'),
        ('s2mae', {'target': 'db'}, "target: 'db' is unknown"),
        ('sigmae', {'target': 'log'}, "target: 'log' is unknown"),
        ('s2mae', {'masking': 'tube'}, "masking: 'tube' is unknown"),
    ],
)
def test_arguments_that_mean_nothing(
    family: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task(family, **arguments)


def test_groups_are_named() -> None:
    made = task(
        'satmae',
        encoder_kwargs={'groups': [TEN[5:], ('green', 'b2', 'B04', 'B05', 'B06')]},
    )
    assert made.model.layout.groups == ((5, 6, 7, 8, 9), (0, 1, 2, 3, 4))
    assert made.encoder_record['groups'] == [list(TEN[5:]), list(TEN[:5])]


def test_bands_out_of_order_make_strange_cubes() -> None:
    bands = ('B11', 'B04', 'B03', 'B02', 'B08', 'B12')
    with pytest.warns(UserWarning, match=r"order of their wavelengths.*'B02', 'B03'"):
        SIGMAETask('s2mae_vit_tiny_patch8', bands=bands, size=32)
