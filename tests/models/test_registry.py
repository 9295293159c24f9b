# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchgeo.models
from torchvision.models._api import Weights, WeightsEnum

from torchgeo_sigmae.models import SIGMAEPyramid, SIGMAEViT, build_encoder
from torchgeo_sigmae.models.registration import build_model, register, register_weights
from torchgeo_sigmae.models.registry import NAMES

TINY = 'sigmae_vit_tiny_patch8'


@pytest.fixture
def tables() -> Iterator[None]:
    """Leave the tables of TorchGeo as they were."""
    api = torchgeo.models.api
    kept = dict(api._model), dict(api._model_weights)
    yield
    for table, content in zip((api._model, api._model_weights), kept, strict=True):
        table.clear()
        table.update(content)


@pytest.fixture
def weights(tmp_path: Path) -> type[WeightsEnum]:
    """An enum as a package has it, whose file is made here."""
    encoder = build_encoder(TINY, 4, 64)
    torch.save(encoder.state_dict(), tmp_path / 'weights.pth')

    class Test_Weights(WeightsEnum):
        TEN = Weights(
            url='', transforms=torch.nn.Identity, meta={'model': TINY, 'in_chans': 4}
        )

        def get_state_dict(self, *args, **kwargs):
            return torch.load(tmp_path / 'weights.pth')

    return Test_Weights


def test_names_are_known_everywhere() -> None:
    assert set(NAMES) <= set(torchgeo.models.list_models())
    assert set(NAMES) <= set(smp.encoders.get_encoder_names())
    families = ['sigmae_vit_*', 's2mae_vit_*', 'satmae_vit_*']
    # Those of tests/helpers/small_models.py may be there as well.
    ours = {name for name in timm.list_models(families) if '_test_' not in name}
    assert set(NAMES) == ours
    model = torchgeo.models.get_model(TINY, in_chans=3, num_classes=5, img_size=64)
    assert isinstance(model, SIGMAEViT)
    assert model.head.out_features == 5
    assert isinstance(smp.encoders.get_encoder(TINY), SIGMAEPyramid)


def test_registering_again_changes_nothing(recwarn) -> None:
    before = dict(torchgeo.models.api._model), dict(smp.encoders.encoders)
    register()
    assert (dict(torchgeo.models.api._model), dict(smp.encoders.encoders)) == before
    assert not recwarn


@pytest.mark.usefixtures('tables')
def test_weights_are_found_by_name_builder_and_string(
    weights: type[WeightsEnum],
) -> None:
    register_weights(weights)
    register_weights(weights)
    assert torchgeo.models.get_model_weights(TINY) is weights
    builder = torchgeo.models.api._model[TINY]
    assert torchgeo.models.get_model_weights(builder) is weights
    assert torchgeo.models.get_weight('Test_Weights.TEN') is weights.TEN
    model = torchgeo.models.get_model(TINY, weights=weights.TEN, num_classes=3)
    state = weights.TEN.get_state_dict()
    for key, value in state.items():
        if key != 'pos_embed':
            assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.usefixtures('tables')
def test_an_enum_without_members() -> None:
    class Empty_Weights(WeightsEnum):
        pass

    register_weights(Empty_Weights)
    for name in NAMES:
        assert torchgeo.models.get_model_weights(name) is Empty_Weights
    with pytest.raises(ValueError, match='not a valid WeightsEnum'):
        torchgeo.models.get_weight('Empty_Weights.ANY')


SMP, MODELS, WEIGHTS = 'encoders.encoders)', 'api._model)', 'api._model_weights)'


@pytest.mark.parametrize(
    ('owner', 'name', 'value', 'named'),
    [
        (smp.encoders, 'encoders', {'resnet18': {'class': None, 'params': {}}}, SMP),
        (smp.encoders, 'encoders', {**smp.encoders.encoders, 'odd': {}}, SMP),
        (smp.encoders, 'encoders', None, SMP),
        (torchgeo.models.api, '_model', [], MODELS),
        (torchgeo.models.api, '_model_weights', None, WEIGHTS),
    ],
)
@pytest.mark.usefixtures('tables')
def test_a_changed_table_is_named_and_the_rest_works(
    monkeypatch: pytest.MonkeyPatch,
    weights: type[WeightsEnum],
    owner: object,
    name: str,
    value: object,
    named: str,
) -> None:
    monkeypatch.setattr(owner, name, value)
    with pytest.warns(UserWarning, match='could not register everything') as caught:
        register()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert [word in message for word in (SMP, MODELS, WEIGHTS)] == [
        word == named for word in (SMP, MODELS, WEIGHTS)
    ]
    register_weights(weights)
    if named != SMP:
        smp.Unet(TINY, encoder_weights=None, in_channels=4)
    if named != MODELS:
        assert isinstance(torchgeo.models.get_model(TINY), SIGMAEViT)
    if named != WEIGHTS:
        assert torchgeo.models.get_weight('Test_Weights.TEN') is weights.TEN
    assert isinstance(timm.create_model(TINY), SIGMAEViT)


SCRIPT = """
import warnings
import segmentation_models_pytorch as smp, timm, torchgeo.models
del torchgeo.models.api, smp.encoders
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import torchgeo_sigmae
ours = [str(w.message) for w in caught if 'torchgeo-sigmae' in str(w.message)]
assert len(ours) == 1, ours
assert all(table in ours[0] for table in {tables}), ours
assert timm.create_model('sigmae_vit_tiny_patch8').embed_dim == 192
"""


@pytest.mark.slow
def test_the_import_survives_without_any_table() -> None:
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT.format(tables=[SMP, MODELS, WEIGHTS])],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr


WIDTHS = {
    'tiny': (192, 12, 3), 'small': (384, 12, 6), 'base': (768, 12, 12),
    'large': (1024, 24, 16),
}  # fmt: skip


def test_names_and_what_is_behind_them() -> None:
    families = {
        'sigmae_vit_{}_patch8': ('SIGMAEViT', 8),
        'sigmae_vit_{}_patch16': ('SIGMAEViT', 16),
        's2mae_vit_{}_patch8': ('S2MAEViT', 8),
        's2mae_vit_{}_patch16': ('S2MAEViT', 16),
        'satmae_vit_{}_patch8': ('SatMAEViT', 8),
    }
    expected = {}
    for pattern, (encoder, patch_size) in families.items():
        for variant, (width, depth, heads) in WIDTHS.items():
            expected[pattern.format(variant)] = encoder, {
                'patch_size': patch_size, 'img_size': {8: 96, 16: 224}[patch_size],
                'in_chans': 10, 'global_pool': 'avg', 'fc_norm': False,
                'dynamic_img_size': True, 'embed_dim': width, 'depth': depth,
                'num_heads': heads,
            }  # fmt: skip
    actual = {
        name: (architecture.encoder.__name__, architecture.arguments())
        for name, architecture in NAMES.items()
    }
    assert actual == expected


@pytest.mark.parametrize('name', [TINY, 'satmae_vit_tiny_patch8'])
def test_timms_configuration_fits_the_model(name: str) -> None:
    config = timm.get_pretrained_cfg(name)
    model = timm.create_model(name)
    assert config.input_size == (10, 96, 96)
    assert model.patch_embed.img_size == (96, 96)
    assert model.num_classes == config.num_classes == 1000
    assert (config.mean, config.std) == ((0.0,) * 10, (1.0,) * 10)
    assert model.get_submodule(config.first_conv) is model.patch_embed.proj
    assert model.get_submodule(config.classifier) is model.head
    assert (config.crop_pct, config.interpolation) == (1.0, 'bicubic')
    assert (config.url, config.license, config.pool_size) == ('', 'mit', None)
    assert not config.has_weights
    assert (
        timm.get_pretrained_cfg('sigmae_vit_base_patch16').input_size[1:] == (224,) * 2
    )


def test_timm_loads_a_file_for_another_size(tmp_path: Path) -> None:
    state = timm.create_model(TINY, positions='learnable').state_dict()
    torch.save(state, tmp_path / 'encoder.pth')
    model = timm.create_model(
        TINY, pretrained=True, img_size=64,
        pretrained_cfg_overlay={'file': str(tmp_path / 'encoder.pth')},
    )  # fmt: skip
    for key, value in model.state_dict().items():
        assert key == 'pos_embed' or torch.equal(value, state[key]), key
    assert model.pos_embed.shape[1] == 1 + 64


def test_builders_are_functions_of_their_name() -> None:
    builder = timm.models.model_entrypoint('s2mae_vit_large_patch16')
    assert builder.__name__ == builder.__qualname__ == 's2mae_vit_large_patch16'
    assert builder.__doc__ == 'S2MAEViT, large, patches of 16 pixels, 10 bands.'
    model = timm.create_model(TINY, features_only=True)
    maps = model(torch.rand(1, 10, 96, 96))
    assert [tuple(one.shape) for one in maps] == [(1, 192, 12, 12)] * 3
    with pytest.raises(RuntimeError, match='No pretrained weights'):
        timm.create_model(TINY, pretrained=True)


def test_weights_bring_their_band_count(weights: type[WeightsEnum]) -> None:
    model = build_model(TINY, weights.TEN, num_classes=3, img_size=64)
    assert model.patch_embed.proj.in_channels == 4
    assert build_model(TINY).patch_embed.proj.in_channels == 10
    with pytest.raises(
        ValueError, match=rf"made for '{TINY}', not for .*Use model='{TINY}'"
    ):
        build_model('sigmae_vit_base_patch8', weights.TEN)
    with pytest.raises(ValueError, match='Pass in_channels=4'):
        build_model(TINY, weights.TEN, in_chans=10)
    with pytest.raises(ValueError, match='Drop the arguments that change'):
        build_model(TINY, weights.TEN, depth=13)


def test_weights_that_lack_a_tensor_are_refused(
    weights: type[WeightsEnum], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = weights.TEN.get_state_dict()
    asked = []

    def lacking(member, **kwargs):
        asked.append(kwargs)
        return {key: value for key, value in state.items() if key != 'norm.weight'}

    monkeypatch.setattr(weights, 'get_state_dict', lacking)
    message = r"missing \['norm.weight'\], unexpected \[\]"
    with pytest.raises(ValueError, match=message):
        build_model(TINY, weights.TEN, img_size=64)
    assert asked == [{'progress': True, 'check_hash': True, 'weights_only': True}]
