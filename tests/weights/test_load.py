# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretraining that goes on from weights: encoder, decoder, positions and bands."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from helpers.training import quiet_trainer as trainer
from helpers.training import small_task as task
from torchgeo_sigmae import (
    ResumableCheckpoint,
    SIGMAETask,
    SyntheticSentinel2,
    SyntheticSentinel2DataModule,
)
from torchgeo_sigmae._compat import Classification
from torchgeo_sigmae.bands import SENTINEL2_BANDS
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS as TEN
from torchgeo_sigmae.models.mae import layout_of
from torchgeo_sigmae.models.positions import POSITIONS
from torchgeo_sigmae.weights import read_weights

pytestmark = pytest.mark.usefixtures('narrow_models')

NAMES = {
    family: f'{family}_vit_tiny_patch8' for family in ('sigmae', 's2mae', 'satmae')
}
every_model = pytest.mark.parametrize('family', list(NAMES))
#: All but cirrus; the new bands lie between those of the weights.
TWELVE = tuple(band for band in SENTINEL2_BANDS if band != 'B10')
SIX = ('B12', 'B03', 'B04', 'B08', 'B8A', 'B11')
SPECTRUM = 'spectral_embed'


def finish(stage: SIGMAETask, path: Path) -> Path:
    """What a run leaves behind, every tensor random."""
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.05)
    run = trainer(path.parent, max_steps=1)
    run.strategy.connect(stage)
    run.save_checkpoint(path)
    return path


def stage_of(path: Path, **arguments: Any) -> SIGMAETask:
    """The task of a stage, and its checkpoint."""
    made = task(**arguments)
    finish(made, path)
    return made


def parts(of: SIGMAETask) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return of.model.encoder.state_dict(), of.model.decoder.state_dict()


# -------------------------------------------------------------------- what is carried


@pytest.mark.parametrize('decoder', ['cross', 'self'])
@pytest.mark.parametrize(
    ('family', 'positions'),
    [
        ('sigmae', 'learnable'),
        *(('s2mae', positions) for positions in POSITIONS),
        ('satmae', 'learnable'),
    ],
)
def test_everything_arrives_bit_by_bit(
    family: str, decoder: str, positions: str, tmp_path: Path
) -> None:
    arguments = {'family': family, 'decoder': decoder}
    if family != 'sigmae':
        arguments['positions'] = positions
    first = stage_of(tmp_path / 'x.ckpt', **arguments)
    second = task(weights=str(tmp_path / 'x.ckpt'), **arguments)
    for before, after in zip(parts(first), parts(second), strict=True):
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert torch.equal(after[key], value), key
    trained = [p.requires_grad for p in first.parameters()]
    assert trained == [p.requires_grad for p in second.parameters()]


@every_model
@pytest.mark.parametrize('decoder', ['cross', 'self'])
def test_positions_are_interpolated_to_another_image_size(
    family: str, decoder: str, tmp_path: Path
) -> None:
    first = stage_of(tmp_path / 'x.ckpt', family=family, decoder=decoder)
    second = task(family, decoder=decoder, size=48, weights=str(tmp_path / 'x.ckpt'))
    for prefix, before, after in zip((1, 0), parts(first), parts(second), strict=True):
        assert before.keys() == after.keys()
        for key, value in before.items():
            if key == 'pos_embed':
                value = resample_abs_pos_embed(value, [6, 6], [4, 4], prefix)
            assert torch.equal(after[key], value), key
    assert ('pos_embed' in parts(first)[1]) == (family != 'sigmae')


@torch.no_grad()
@pytest.mark.parametrize(
    ('bands', 'decoder'), [(TWELVE, 'cross'), (TWELVE, 'self'), (SIX, 'cross')]
)
def test_a_plain_vit_predicts_shared_bands_the_same(
    bands: tuple[str, ...], decoder: str, tmp_path: Path
) -> None:
    first = stage_of(tmp_path / 'x.ckpt', decoder=decoder).eval()
    weights = str(tmp_path / 'x.ckpt')
    second = task(bands=bands, decoder=decoder, weights=weights).eval()
    shared = [band for band in bands if band in TEN]
    keep, masked = torch.randperm(16).expand(2, -1).split((6, 10), 1)
    values = torch.randn(2, len(shared), 32, 32)
    predicted = []
    for stage, names in ((first, TEN), (second, bands)):
        channels = [names.index(band) for band in shared]
        image = torch.zeros(2, len(names), 32, 32)
        image[:, channels] = values
        out = stage.model(image, keep, masked).unflatten(-1, (len(names), 64))
        predicted.append(out[:, :, channels])
    torch.testing.assert_close(*predicted, rtol=1e-4, atol=1e-4)


def rows(of: SIGMAETask) -> dict[str, Tensor]:
    """The rows of a head by band, place by place: weights and biases."""
    layout, head = of.model.layout, of.model.decoder.head
    both = torch.cat([head.weight, head.bias[:, None]], dim=1).detach()
    actual = {}
    for g, group in enumerate(layout.groups):
        for slot, channel in enumerate(group):
            start = (g * layout.group_size + slot) * 64
            actual[of.bands[channel]] = both[start : start + 64]
    return actual


@pytest.mark.parametrize(
    'bands', [TWELVE, TEN[::-1], ('B04', 'B03', 'B08', 'B8A', 'B11', 'B12')]
)
@pytest.mark.parametrize('family', ['sigmae', 'satmae'])
def test_rows_of_the_head_follow_the_bands(
    family: str, bands: tuple[str, ...], tmp_path: Path
) -> None:
    first = stage_of(tmp_path / 'x.ckpt', family=family)
    second = task(family, bands=bands, weights=str(tmp_path / 'x.ckpt'))
    before, after = rows(first), rows(second)
    assert set(after) == set(bands)
    for band in set(bands) & set(TEN):
        torch.testing.assert_close(after[band], before[band], msg=band)
    for key, value in parts(second)[1].items():
        if not key.startswith('head') and key != SPECTRUM:
            assert torch.equal(value, parts(first)[1][key]), key


def test_groups_that_lost_all_their_bands_leave_the_decoder_too(
    tmp_path: Path,
) -> None:
    first = stage_of(tmp_path / 'x.ckpt', family='satmae')
    bands = ('B02', 'B03', 'B04', 'B08')
    second = task(
        'satmae',
        bands=bands,
        weights=str(tmp_path / 'x.ckpt'),
        masking='random',
        indices=('NDVI',),
    )
    assert second.model.layout.groups == ((0, 1, 2, 3),)
    for before, after in zip(parts(first), parts(second), strict=True):
        assert torch.equal(after[SPECTRUM], before[SPECTRUM][:, :1])
    before, after = rows(first), rows(second)
    for band in ('B02', 'B03', 'B04'):
        torch.testing.assert_close(after[band], before[band])


def test_s2maes_head_serves_all_cubes(tmp_path: Path) -> None:
    first = stage_of(tmp_path / 'x.ckpt', family='s2mae')
    second = task('s2mae', bands=TWELVE, weights=str(tmp_path / 'x.ckpt'))
    # Cubes of two go on, where a fresh encoder would take three.
    assert second.model.layout.group_size == 2
    for before, after in zip(parts(first), parts(second), strict=True):
        for key, value in before.items():
            assert key == SPECTRUM or torch.equal(after[key], value), key
        assert after[SPECTRUM].shape[1] == 6
        # B11 and B12 end both.
        torch.testing.assert_close(after[SPECTRUM][:, -1], before[SPECTRUM][:, -1])
        # Between its neighbors, every one of them.
        low, high = before[SPECTRUM].amin(1, True), before[SPECTRUM].amax(1, True)
        assert (after[SPECTRUM] >= low - 1e-6).all()
        assert (after[SPECTRUM] <= high + 1e-6).all()


def test_one_cube_becomes_two(tmp_path: Path) -> None:
    bands = ('B03', 'B04', 'B08', 'B11', 'B12')
    arguments = {'bands': bands, 'cube_bands': 5}
    first = stage_of(tmp_path / 'x.ckpt', family='s2mae', **arguments)
    # The same once more: five bands, which no default cube divides.
    for asked in ({}, {'cube_bands': 5}):
        again = task('s2mae', bands=bands, weights=str(tmp_path / 'x.ckpt'), **asked)
        assert again.model.layout == first.model.layout
    second = task('s2mae', weights=str(tmp_path / 'x.ckpt'))
    assert second.model.layout.num_groups == 2
    for key, value in parts(first)[1].items():
        assert key == SPECTRUM or torch.equal(parts(second)[1][key], value), key


@pytest.mark.parametrize('named', [False, True])
def test_user_defined_groups_continue(named: bool, tmp_path: Path) -> None:
    groups = [
        ['B08', 'B02'],
        ['B05', 'B03', 'B04'],
        ['B12', 'B11', 'B06', 'B07', 'B8A'],
    ]
    first = stage_of(tmp_path / 'x.ckpt', family='satmae', groups=groups)
    asked = {'groups': groups} if named else {}
    second = task('satmae', weights=str(tmp_path / 'x.ckpt'), **asked)
    assert second.model.layout == layout_of(second.model.encoder) == first.model.layout
    assert [set(group) for group in second.encoder_record['groups']] == [
        set(group) for group in groups
    ]
    image = torch.randn(2, 10, 32, 32)
    keep, masked = torch.randperm(48).expand(2, -1).split((16, 32), 1)
    with torch.no_grad():
        expected = first.eval().model(image, keep, masked)
        assert torch.equal(second.eval().model(image, keep, masked), expected)


def test_new_bands_start_at_their_mean(tmp_path: Path) -> None:
    stage_of(tmp_path / 'x.ckpt')
    second = task(bands=TWELVE, weights=str(tmp_path / 'x.ckpt'))
    for band in ('B01', 'B09'):
        kernel = second.model.encoder.patch_embed.proj.weight
        assert not kernel[:, TWELVE.index(band)].any()
        assert not rows(second)[band].any()


# ------------------------------------------------------------------------- a whole run


@pytest.fixture(scope='module')
def chips(synthetic_root: Path) -> SyntheticSentinel2:
    return SyntheticSentinel2(synthetic_root, 'val')


def fit(stage: SIGMAETask, data: Any, path: Path, **arguments: Any) -> Any:
    """Two steps on eight chips; with a datamodule, as it comes."""
    run = trainer(path, max_steps=2, limit_val_batches=0, **arguments)
    if isinstance(data, SyntheticSentinel2):
        subset = torch.utils.data.Subset(data, range(8))
        run.fit(stage, DataLoader(subset, 4))
    else:
        run.fit(stage, datamodule=data)
    return run


def test_the_record_names_every_stage(
    chips: SyntheticSentinel2, synthetic_root: Path, tmp_path: Path
) -> None:
    datamodule = SyntheticSentinel2DataModule(root=synthetic_root, batch_size=4)
    first = task('s2mae', mean=None, std=None, normalize=None)
    assert first.stage == {'datamodule': None, 'samples': None, 'steps': 0}
    fit(first, datamodule, tmp_path).save_checkpoint(tmp_path / 'one.ckpt')
    record = {
        'datamodule': 'SyntheticSentinel2DataModule',
        'root': str(synthetic_root),
        'samples': 256,
        'bands': list(TEN),
        'size': 32,
        'steps': 2,
    }
    assert first.encoder_record['trained_on'] == [record]

    second = task('s2mae', size=48, weights=str(tmp_path / 'one.ckpt'))
    fit(second, chips, tmp_path).save_checkpoint(tmp_path / 'two.ckpt')
    other = {**record, 'datamodule': None, 'root': None, 'samples': 8, 'size': 48}
    saved = torch.load(tmp_path / 'two.ckpt', weights_only=True)
    assert saved['encoder']['trained_on'] == [record, other]
    second.export(tmp_path / 'two.pth')
    exported = read_weights(tmp_path / 'two.pth').info
    assert exported['trained_on'] == [record, other]

    restored = SIGMAETask.load_from_checkpoint(tmp_path / 'two.ckpt', weights_only=True)
    restored.export(tmp_path / 'again.pth')
    again = read_weights(tmp_path / 'again.pth').info
    assert again['trained_on'] == [record, other]
    # A trainer that only looks has trained nothing.
    run = trainer(tmp_path, limit_val_batches=1)
    run.validate(restored, DataLoader(chips, 4), verbose=False)
    assert restored.encoder_record['trained_on'] == [record, other]
    third = task('s2mae', weights=str(tmp_path / 'two.ckpt'))
    assert [s['size'] for s in third.encoder_record['trained_on'][:2]] == [32, 48]
    # A training checkpoint serves TorchGeo like an export.
    weights = str(tmp_path / 'two.ckpt')
    loaded = Classification(
        model=NAMES['s2mae'], weights=weights, in_channels=10, num_classes=2
    ).model.state_dict()
    for key, value in second.model.encoder.state_dict().items():
        assert key == 'pos_embed' or torch.equal(loaded[key], value), key


@pytest.mark.parametrize(
    ('family', 'arguments', 'bands'),
    [
        ('s2mae', {'cube_bands': 5}, TEN),
        ('s2mae', {'positions': 'vanilla'}, TEN),
        ('satmae', {'groups': [TEN[:1], TEN[1:]]}, TEN),
        ('satmae', {'positions': 'vanilla'}, TEN),
        # Not the cubes and groups that are the default of these bands.
        ('s2mae', {}, TWELVE),
        ('satmae', {'groups': [TEN[1:], TEN[:1]]}, TWELVE),
    ],
)
def test_weights_bring_their_layout_and_restore_without_their_file(
    family: str, arguments: dict[str, Any], bands: tuple[str, ...], tmp_path: Path
) -> None:
    first = stage_of(tmp_path / 'one.ckpt', family=family, **arguments)
    first.export(tmp_path / 'one.pth')
    positions = arguments.get('positions', 'learnable')
    second = task(
        family, bands=bands, weights=str(tmp_path / 'one.pth'), positions=positions
    )
    if bands == TEN:
        assert second.model.layout == first.model.layout
    assert second.model.decoder.joint == first.model.decoder.joint
    finish(second, tmp_path / 'two.ckpt')
    (tmp_path / 'one.pth').unlink()
    restored = SIGMAETask.load_from_checkpoint(tmp_path / 'two.ckpt', weights_only=True)
    assert restored.model.layout == second.model.layout
    for before, after in zip(parts(second), parts(restored), strict=True):
        assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_folder_of_a_run_will_do(chips: SyntheticSentinel2, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r'no resume/\*\.ckpt and no config.json. Pass the'
    ):
        task(weights=str(tmp_path))
    first = task()
    fit(first, chips, tmp_path, callbacks=[ResumableCheckpoint(every_n_train_steps=1)])
    files = sorted((tmp_path / 'resume').glob('*.ckpt'))
    assert len(files) == 2
    # The newest, whatever its name.
    os.utime(files[0], (1, 1))
    weights = read_weights(tmp_path)
    for key, value in first.model.encoder.state_dict().items():
        assert torch.equal(weights.encoder[key], value), key
    second = task(weights=str(tmp_path))
    assert second.history[0]['steps'] == 2


# ---------------------------------------------------------------------------- refusals


@every_model
@pytest.mark.parametrize('half', [False, True])
def test_an_export_with_its_decoder_is_a_stage(
    family: str, half: bool, tmp_path: Path
) -> None:
    first = stage_of(tmp_path / 'x.ckpt', family=family)
    first.export(tmp_path / 'x.pth', decoder=True, half=half)
    second = task(family, weights=str(tmp_path / 'x.pth'))
    for before, after in zip(parts(first), parts(second), strict=True):
        assert before.keys() == after.keys()
        for key, value in before.items():
            rounded = half and value.is_floating_point()
            expected = value.half().float() if rounded else value
            assert torch.equal(after[key], expected), key
    # Whoever asks for the encoder does not see it.
    alone = read_weights(tmp_path / 'x.pth').encoder
    assert alone.keys() == parts(first)[0].keys()
    assert torch.float16 not in {value.dtype for value in alone.values()}
    Classification(
        NAMES[family], str(tmp_path / 'x.pth'), in_channels=10, num_classes=2
    )


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    made = task()
    made.export(tmp_path / 'x.pth')
    made.export(tmp_path / 'half.pth', half=True)
    sizes = [(tmp_path / name).stat().st_size for name in ('x.pth', 'half.pth')]
    assert 0.45 * sizes[0] < sizes[1] < 0.6 * sizes[0]


@every_model
def test_an_export_without_its_decoder_starts_a_new_one(
    family: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    first = stage_of(tmp_path / 'x.ckpt', family=family)
    first.export(tmp_path / 'x.pth')
    torch.manual_seed(1)
    fresh = task(family)
    torch.manual_seed(1)
    second = task(family, weights=str(tmp_path / 'x.pth'))
    for key, value in parts(first)[0].items():
        assert torch.equal(parts(second)[0][key], value), key
    for key, value in parts(fresh)[1].items():
        assert torch.equal(parts(second)[1][key], value), key
    assert not [w for w in recwarn if 'decoder' in str(w.message)]


@pytest.mark.parametrize('family', ['sigmae', 's2mae'])
@pytest.mark.parametrize(
    ('before', 'after', 'carried'),
    [
        ({'spectral_weight': 0.5}, {'spectral_weight': 1.0}, True),
        (
            {'spectral_weight': 0.5, 'indices': ['NDVI']},
            {'spectral_weight': 1.0},
            False,
        ),
        ({'spectral_weight': 0.5}, {}, False),
        ({}, {'spectral_weight': 0.5}, False),
    ],
)
def test_the_decoder_goes_on_whatever_the_spectral_target(
    family: str,
    before: dict[str, Any],
    after: dict[str, Any],
    carried: bool,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    first = stage_of(tmp_path / 'x.ckpt', family=family, **before)
    second = task(family, weights=str(tmp_path / 'x.ckpt'), **after)
    old, new = parts(first)[1], parts(second)[1]
    for key, value in new.items():
        expected = carried if key.startswith('spectral_head') else True
        assert (key in old and torch.equal(old[key], value)) == expected, key
    assert any(key.startswith('spectral_head') for key in new) == bool(after)
    assert not [w for w in recwarn if 'anew' in str(w.message)]


def test_the_head_of_the_spectral_target_starts_anew_for_other_bands(
    tmp_path: Path,
) -> None:
    first = stage_of(tmp_path / 'x.ckpt', spectral_weight=0.5)
    weights = str(tmp_path / 'x.ckpt')
    second = task(bands=TEN[::-1], weights=weights, spectral_weight=0.5)
    old, new = parts(first)[1], parts(second)[1]
    assert torch.equal(old['mask_token'], new['mask_token'])
    assert not torch.equal(old['spectral_head.weight'], new['spectral_head.weight'])


@pytest.mark.parametrize(
    ('after', 'message'),
    [
        ({'decoder': 'self'}, r'unexpected tensors \(mix'),
        ({'decoder_dim': 64}, 'decoder_depth=1, decoder_dim=32'),
        ({'decoder_depth': 2}, r'missing tensors \(blocks.1'),
    ],
)
def test_another_decoder_starts_anew(
    after: dict[str, Any], message: str, tmp_path: Path
) -> None:
    first = stage_of(tmp_path / 'x.ckpt')
    torch.manual_seed(1)
    fresh = task(**after)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match=f'starts anew.*{message}|{message}.*anew'):
        second = task(weights=str(tmp_path / 'x.ckpt'), **after)
    for key, value in parts(first)[0].items():
        assert torch.equal(parts(second)[0][key], value), key
    for key, value in parts(fresh)[1].items():
        assert torch.equal(parts(second)[1][key], value), key


@pytest.mark.parametrize(
    ('family', 'before', 'after', 'message'),
    [
        (
            'sigmae',
            {},
            {'model': 'sigmae_vit_small_patch8'},
            "made for model='sigmae_vit_tiny_patch8' and does not fit",
        ),
        ('sigmae', {}, {'model': NAMES['s2mae']}, "made for model='sigmae_vit_tiny"),
        ('s2mae', {}, {'model': NAMES['satmae']}, "made for model='s2mae_vit_tiny"),
        (
            's2mae',
            {},
            {'cube_bands': 5},
            'cube_bands: 5, but the encoder goes on with 2',
        ),
        (
            'satmae',
            {},
            {'groups': [TEN[:5], TEN[5:]]},
            'groups: .*, but the encoder goes on with',
        ),
        ('s2mae', {}, {'positions': 'sincos'}, 'encoder goes on with .learnable'),
        (
            's2mae',
            {'positions': 'vanilla'},
            {'positions': 'sincos'},
            "positions: 'sincos', but the encoder goes on with 'vanilla'",
        ),
        ('s2mae', {}, {'bands': TEN[:9]}, r'9 bands cannot be cut .* 8 or 10 bands'),
    ],
)
def test_another_architecture_is_refused(
    family: str,
    before: dict[str, Any],
    after: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    stage_of(tmp_path / 'x.ckpt', family=family, **before)
    after = {'indices': ('NDVI',), **after}
    with pytest.raises(ValueError, match=message):
        task(family, weights=str(tmp_path / 'x.ckpt'), **after)


@pytest.mark.parametrize(
    ('before', 'after'), [('vanilla', 'sincos'), ('sincos', 'vanilla')]
)
def test_positions_that_leave_no_tensor_are_compared_too(
    before: str, after: str, tmp_path: Path
) -> None:
    """Also where a checkpoint does not name them."""
    stage_of(tmp_path / 'x.ckpt', family='s2mae', positions=before)
    content = torch.load(tmp_path / 'x.ckpt', weights_only=True)
    del content['encoder']['positions']
    torch.save(content, tmp_path / 'x.ckpt')
    with pytest.raises(ValueError, match=f"positions: '{after}', but the encoder goes"):
        task('s2mae', weights=str(tmp_path / 'x.ckpt'), positions=after)
