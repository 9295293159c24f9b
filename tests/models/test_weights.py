# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Weight enums: the machinery, on a file made here, and every member there is."""

import copy
import hashlib
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torchgeo.models import get_model_weights, get_weight
from torchvision.models._api import WeightsEnum

import torchgeo_sigmae
from torchgeo_sigmae import SIGMAETask
from torchgeo_sigmae._compat import (
    Classification,
    Regression,
    SemanticSegmentation,
)
from torchgeo_sigmae.bands import SENTINEL2
from torchgeo_sigmae.models import (
    PackagedFile,
    PackagedWeights,
    SIGMAE_Weights,
    build_encoder,
    normalization,
    read_encoder,
    read_weights,
    save_encoder,
)
from torchgeo_sigmae.models.weights import find_weights

NAME = 'sigmae_vit_tiny_patch8'
BANDS = ('B04', 'B03', 'B02', 'B08')
MEAN, STD = [300.0, 500.0, 700.0, 2000.0], [100.0, 200.0, 300.0, 1000.0]
META = {
    *('dataset', 'in_chans', 'model', 'bands', 'img_size', 'ssl_method'),
    *('publication', 'repo', 'license'),
}


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """A member whose file ships in a package of its own, made for this test."""
    package = tmp_path / 'some where' / 'made_for_a_test'
    package.mkdir(parents=True)
    (package / '__init__.py').touch()
    file = package / 'encoder-0123.pth'
    save_encoder(
        build_encoder(NAME, 4, 32),
        file,
        {
            'model': NAME,
            'in_channels': 4,
            'bands': list(BANDS),
            'sensor': 'sentinel2',
            'size': 32,
            'mean': MEAN,
            'std': STD,
        },
    )
    monkeypatch.syspath_prepend(str(package.parent))

    class MadeHere_Weights(PackagedWeights):
        TINY = PackagedFile(
            url=file.name,
            transforms=normalization(MEAN, STD),
            meta={
                'dataset': 'none',
                'in_chans': 4,
                'model': NAME,
                'bands': list(BANDS),
                'img_size': 32,
                'ssl_method': 'sigmae',
                'publication': 'none',
                'repo': 'none',
                'license': 'MIT',
            },
            sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            package='made_for_a_test',
        )

    monkeypatch.setitem(
        sys.modules['torchgeo.models.api']._model_weights, 'made', MadeHere_Weights
    )
    # By name, as pickle looks classes up.
    monkeypatch.setattr(
        sys.modules[__name__], 'MadeHere_Weights', MadeHere_Weights, raising=False
    )
    MadeHere_Weights.__qualname__ = 'MadeHere_Weights'
    yield MadeHere_Weights.TINY
    sys.modules.pop('made_for_a_test', None)


def path_of(member: PackagedWeights) -> Path:
    return Path(str(member._resource()))


def check_member(member: PackagedWeights) -> None:
    """What must be true of every member that is ever named."""
    assert set(member.meta) >= META
    checkpoint = member.read()
    known = checkpoint.hyper_parameters
    assert member.meta['model'] == known['model']
    assert member.meta['in_chans'] == known['in_channels'] == len(known['bands'])
    assert list(member.meta['bands']) == list(known['bands'])
    assert all(SENTINEL2.band(name).name == name for name in known['bands'])
    assert member.meta['img_size'] == known['size']
    assert member.url.endswith('.pth')
    # The transform takes the mean of every band to 0, and one standard deviation to 1.
    for add, expected in ((0, 0.0), (1, 1.0)):
        raw = torch.tensor(known['mean']) + add * torch.tensor(known['std'])
        image = raw.view(1, -1, 1, 1).repeat(2, 1, 3, 3)
        torch.testing.assert_close(
            member.transforms(image), torch.full_like(image, expected)
        )


def test_a_complete_member(member: PackagedWeights) -> None:
    check_member(member)


def test_every_member_of_ours_is_complete() -> None:
    for member in SIGMAE_Weights:
        check_member(member)


def test_torchgeos_registry_answers() -> None:
    assert get_model_weights(NAME) is SIGMAE_Weights


def test_sentinel2_is_first_and_small() -> None:
    first = SIGMAE_Weights.SENTINEL2
    assert next(iter(SIGMAE_Weights)) is first
    assert torchgeo_sigmae.SIGMAE_Weights is SIGMAE_Weights
    assert path_of(first).stat().st_size < 20e6
    assert find_weights(str(first)) is get_weight(str(first)) is first
    # Nothing of the machine they were trained on.
    for stage in first.read().hyper_parameters['trained_on']:
        assert '/' not in stage['root'], stage


def test_sentinel2_by_enum_string_and_path() -> None:
    first = SIGMAE_Weights.SENTINEL2
    given = (first, str(first), str(path_of(first)))
    arguments = {'in_channels': 10, 'num_classes': 2}
    for make, encoder_of in (
        (partial(Classification, NAME), lambda task: task.model),
        (
            partial(SemanticSegmentation, 'upernet', NAME, task='multiclass'),
            lambda task: task.model.encoder,
        ),
    ):
        states = [
            encoder_of(make(weights=weights, **arguments)).state_dict()
            for weights in given
        ]
        assert torch.equal(
            states[0]['blocks.11.mlp.fc2.weight'],
            first.get_state_dict()['blocks.11.mlp.fc2.weight'],
        )
        for other in states[1:]:
            assert states[0].keys() == other.keys()
            for key, value in other.items():
                if not key.startswith('head.'):
                    assert torch.equal(states[0][key], value), key


@pytest.mark.parametrize('kind', [str, SIGMAE_Weights])
def test_pretraining_goes_on_from_sentinel2(kind: type) -> None:
    first = SIGMAE_Weights.SENTINEL2
    file = torch.load(path_of(first), weights_only=True)['state_dict']
    task = SIGMAETask(
        NAME, previous=str(first) if kind is str else first, size=64, decoder_dim=128,
        decoder_depth=2, decoder_num_heads=4,
    )  # fmt: skip
    assert len(task.history) == 2
    for prefix, part in (('model.', 'encoder'), ('decoder.', 'decoder')):
        for key, value in getattr(task.model, part).state_dict().items():
            assert torch.equal(value, file[prefix + key].float()), key


@pytest.mark.parametrize(
    ('args', 'kwargs'),
    [
        ((), {}),
        ((), {'progress': True}),
        ((), {'progress': True, 'check_hash': True, 'weights_only': True}),
        ((), {'check_hash': False, 'weights_only': False, 'file_name': 'other.pth'}),
        ((), {'model_dir': '/nowhere', 'map_location': 'cpu'}),
        (('/nowhere', None, False, False, 'other.pth', False), {}),
    ],
)
def test_whatever_the_arguments(
    member: PackagedWeights,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # Torch hub's cache is neither read nor written.
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    state_dict = member.get_state_dict(*args, **kwargs)
    expected = read_encoder(path_of(member)).state_dict
    assert list(state_dict) == list(expected)
    assert 'patch_embed.proj.weight' in state_dict
    assert all(torch.equal(state_dict[key], expected[key]) for key in expected)
    assert not (tmp_path / 'cache').exists()

    # The hash is verified again, and the loaded tensors are the caller's own.
    state_dict.popitem()
    assert len(member.get_state_dict(*args, **kwargs)) == len(expected)
    content = bytearray(path_of(member).read_bytes())
    content[len(content) // 2] ^= 1
    path_of(member).write_bytes(content)
    with pytest.raises(RuntimeError, match='damaged or was altered'):
        member.get_state_dict(*args, **kwargs)


def test_map_location_is_followed(member: PackagedWeights) -> None:
    for tensors in (
        member.get_state_dict(map_location='meta'),
        member.get_state_dict(None, torch.device('meta')),
    ):
        assert all(tensor.is_meta for tensor in tensors.values())


def test_an_altered_file_is_named_with_both_hashes(member: PackagedWeights) -> None:
    save_encoder(build_encoder(NAME, 4, 32), path_of(member), {'model': NAME})
    found = hashlib.sha256(path_of(member).read_bytes()).hexdigest()
    with pytest.raises(RuntimeError) as error:
        member.get_state_dict()
    for said in (str(path_of(member)), found, member.value.sha256, 'pip install'):
        assert said in str(error.value)


def test_a_missing_file_is_named(member: PackagedWeights) -> None:
    path_of(member).unlink()
    with pytest.raises(FileNotFoundError, match=r'missing .*encoder-0123.*Reinstall'):
        member.get_state_dict()


def test_code_in_the_file_is_not_executed(tmp_path: Path, member) -> None:
    witness = tmp_path / 'executed'

    class Payload:
        def __reduce__(self):
            return (Path.mkdir, (witness,))

    torch.save({'hyper_parameters': Payload(), 'state_dict': {}}, path_of(member))
    digest = hashlib.sha256(path_of(member).read_bytes()).hexdigest()
    member.value.sha256 = digest
    with pytest.raises(ValueError, match='cannot be read as tensors and plain values'):
        member.get_state_dict(weights_only=False)
    assert not witness.exists()


def test_members_travel_between_processes(member: PackagedWeights) -> None:
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member
    assert type(member).verify('TINY') is member


def test_url_is_that_of_the_file(member: PackagedWeights) -> None:
    assert member.url == path_of(member).as_uri()
    assert '%20' in member.url


@pytest.mark.parametrize('task', [Classification, Regression])
def test_torchgeos_loaders_take_enum_string_and_path(
    task: Callable[..., torch.nn.Module], member: PackagedWeights
) -> None:
    expected = member.get_state_dict()
    assert get_weight('MadeHere_Weights.TINY') is member
    outputs = {'num_classes': 3} if task is Classification else {'num_outputs': 1}
    for weights in (member, str(member), str(path_of(member))):
        loaded = task(
            model=NAME, weights=weights, in_channels=4, **outputs
        ).model.state_dict()
        for key in expected:
            if key != 'pos_embed':
                assert torch.equal(loaded[key], expected[key]), (weights, key)
        assert loaded['pos_embed'].shape == (1, 145, 192)


def test_our_task_takes_enum_string_and_path(member: PackagedWeights) -> None:
    expected = member.get_state_dict()
    for weights in (member, str(member), str(path_of(member)), path_of(member)):
        task = SIGMAETask(
            NAME, weights, bands=BANDS, size=32, masking='random', indices=('ndvi',)
        )
        loaded = task.model.encoder.state_dict()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match=r'TINY.*made for the bands .*adapt_bands'):
        SIGMAETask(NAME, member, bands=BANDS[::-1], size=32, indices=('ndvi',))


def test_ours_are_found_without_torchgeos_registry(
    member: PackagedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str) -> WeightsEnum:
        raise ValueError(f'{name} is not a valid WeightsEnum')

    monkeypatch.setattr('torchgeo_sigmae.models.weights.get_weight', gone)
    monkeypatch.setattr('torchgeo_sigmae.models.weights.SIGMAE_Weights', type(member))
    assert find_weights('MadeHere_Weights.TINY') is member
    assert read_weights('MadeHere_Weights.TINY').hyper_parameters['mean'] == MEAN


def test_other_enums_come_with_their_meta(
    member: PackagedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchGeo's own enums fetch their file with the hash checked."""
    passed = {}

    class Other_Weights(WeightsEnum):
        FIRST = member.value

        def get_state_dict(self, *args, **kwargs):
            passed.update(kwargs)
            return member.get_state_dict()

    checkpoint = read_weights(Other_Weights.FIRST)
    assert checkpoint.hyper_parameters == member.meta
    assert passed == {'progress': True, 'check_hash': True, 'weights_only': True}


@pytest.mark.parametrize('dtype', [torch.uint16, torch.int32, torch.float32])
def test_transforms_take_raw_values_in_any_type(dtype: torch.dtype) -> None:
    transforms = normalization(MEAN, STD)
    raw = torch.tensor(MEAN).add(100).to(dtype).view(4, 1, 1).repeat(1, 2, 2)
    before = raw.clone()
    expected = (100 / torch.tensor(STD)).view(4, 1, 1).expand(4, 2, 2)
    found = transforms(raw)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert torch.equal(raw, before), 'the input was written to'
    sample = transforms({'image': raw, 'label': 3})
    torch.testing.assert_close(sample['image'], expected)
    assert sample['label'] == 3
