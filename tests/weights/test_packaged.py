# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Weight enums: the machinery, on a file made here, and every member there is."""

import copy
import hashlib
import pickle
import sys
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
from torchgeo_sigmae.models import build_encoder
from torchgeo_sigmae.weights import SIGMAE_Weights, Weights, read_weights, write_weights
from torchgeo_sigmae.weights.packaged import (
    PackagedFile,
    PackagedWeights,
    normalization,
)
from torchgeo_sigmae.weights.read import find_weights

NAME = 'sigmae_vit_tiny_patch8'
BANDS = ('B04', 'B03', 'B02', 'B08')
MEAN, STD = [300.0, 500.0, 700.0, 2000.0], [100.0, 200.0, 300.0, 1000.0]
META = {
    *('dataset', 'in_chans', 'model', 'bands', 'img_size', 'ssl_method'),
    *('publication', 'repo', 'license'),
}


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """A member whose file is made for this test; an absolute path stays as it is."""
    file = tmp_path / 'some where' / 'encoder-0123.pth'
    info = {
        'model': NAME,
        'in_channels': 4,
        'bands': list(BANDS),
        'sensor': 'sentinel2',
        'size': 32,
        'mean': MEAN,
        'std': STD,
    }
    write_weights(Weights(build_encoder(NAME, 4, 32).state_dict(), info=info), file)

    class MadeHere_Weights(PackagedWeights):
        TINY = PackagedFile(
            url=str(file),
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
        )

    monkeypatch.setitem(
        sys.modules['torchgeo.models.api']._model_weights, 'made', MadeHere_Weights
    )
    # By name, as pickle looks classes up.
    monkeypatch.setattr(
        sys.modules[__name__], 'MadeHere_Weights', MadeHere_Weights, raising=False
    )
    MadeHere_Weights.__qualname__ = 'MadeHere_Weights'
    return MadeHere_Weights.TINY


@pytest.mark.parametrize('member', SIGMAE_Weights)
def test_every_member_of_ours_is_complete(member: PackagedWeights) -> None:
    assert set(member.meta) >= META
    info = member.read().info
    assert member.meta['model'] == info['model']
    assert member.meta['in_chans'] == info['in_channels'] == len(info['bands'])
    assert list(member.meta['bands']) == list(info['bands'])
    assert all(SENTINEL2.band(name).name == name for name in info['bands'])
    assert member.meta['img_size'] == info['size']
    assert member.url.endswith('.pth')
    # The transform takes the mean of every band to 0, and one standard deviation to 1.
    for add, expected in ((0, 0.0), (1, 1.0)):
        raw = torch.tensor(info['mean']) + add * torch.tensor(info['std'])
        image = raw.view(1, -1, 1, 1).repeat(2, 1, 3, 3)
        torch.testing.assert_close(
            member.transforms(image), torch.full_like(image, expected)
        )


def test_sentinel2_is_first_and_small() -> None:
    first = SIGMAE_Weights.SENTINEL2
    assert next(iter(SIGMAE_Weights)) is first
    assert torchgeo_sigmae.SIGMAE_Weights is SIGMAE_Weights
    assert get_model_weights(NAME) is SIGMAE_Weights
    assert first.path.stat().st_size < 20e6
    assert find_weights(str(first)) is get_weight(str(first)) is first
    # Nothing of the machine they were trained on.
    for stage in first.read().info['trained_on']:
        assert '/' not in stage['root'], stage


def test_sentinel2_by_enum_string_and_path() -> None:
    first = SIGMAE_Weights.SENTINEL2
    given = (first, str(first), str(first.path))
    expected = first.get_state_dict()
    for make in (
        partial(Classification, NAME, num_classes=2),
        partial(Regression, NAME),
        partial(SemanticSegmentation, 'upernet', NAME, num_classes=2),
    ):
        for weights in given:
            model = make(weights=weights, in_channels=10).model
            state = getattr(model, 'encoder', model).state_dict()
            for key, value in expected.items():
                # Plain ViTs resample positions to the size they are built for.
                if key != 'pos_embed':
                    assert torch.equal(state[key], value), (weights, key)


@pytest.mark.parametrize('kind', [str, SIGMAE_Weights])
def test_pretraining_goes_on_from_sentinel2(kind: type) -> None:
    first = SIGMAE_Weights.SENTINEL2
    file = torch.load(first.path, weights_only=True)['state_dict']
    task = SIGMAETask(
        NAME, weights=str(first) if kind is str else first, size=64, decoder_dim=128,
        decoder_depth=2, decoder_num_heads=4,
    )  # fmt: skip
    assert [stage['steps'] for stage in task.history] == [8000, 9000, 7000]
    for prefix, part in (('model.', 'encoder'), ('decoder.', 'decoder')):
        for key, value in getattr(task.model, part).state_dict().items():
            assert torch.equal(value, file[prefix + key].to(value.dtype)), key


@pytest.mark.parametrize(
    ('args', 'kwargs'),
    [
        ((), {}),
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
    expected = read_weights(member.path).encoder
    assert list(state_dict) == list(expected)
    assert 'patch_embed.proj.weight' in state_dict
    assert all(torch.equal(state_dict[key], expected[key]) for key in expected)
    assert not (tmp_path / 'cache').exists()

    # The hash is verified again, and the loaded tensors are the caller's own.
    state_dict.popitem()
    assert len(member.get_state_dict(*args, **kwargs)) == len(expected)
    content = bytearray(member.path.read_bytes())
    content[len(content) // 2] ^= 1
    member.path.write_bytes(content)
    with pytest.raises(RuntimeError, match='damaged or was altered'):
        member.get_state_dict(*args, **kwargs)


def test_map_location_is_followed(member: PackagedWeights) -> None:
    for tensors in (
        member.get_state_dict(map_location='meta'),
        member.get_state_dict(None, torch.device('meta')),
    ):
        assert all(tensor.is_meta for tensor in tensors.values())


def test_an_altered_file_is_named_with_both_hashes(member: PackagedWeights) -> None:
    write_weights(
        Weights(build_encoder(NAME, 4, 32).state_dict(), info={'model': NAME}),
        member.path,
    )
    actual = hashlib.sha256(member.path.read_bytes()).hexdigest()
    with pytest.raises(RuntimeError) as error:
        member.get_state_dict()
    for said in (str(member.path), actual, member.value.sha256, 'pip install'):
        assert said in str(error.value)


def test_a_missing_file_is_named(member: PackagedWeights) -> None:
    member.path.unlink()
    with pytest.raises(FileNotFoundError, match=r'missing .*encoder-0123.*Reinstall'):
        member.get_state_dict()


def test_code_in_the_file_is_not_executed(tmp_path: Path, member) -> None:
    witness = tmp_path / 'executed'

    class Payload:
        def __reduce__(self):
            return (Path.mkdir, (witness,))

    torch.save({'hyper_parameters': Payload(), 'state_dict': {}}, member.path)
    digest = hashlib.sha256(member.path.read_bytes()).hexdigest()
    member.value.sha256 = digest
    with pytest.raises(ValueError, match='cannot be read as tensors and plain values'):
        member.get_state_dict(weights_only=False)
    assert not witness.exists()


def test_members_travel_between_processes(member: PackagedWeights) -> None:
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member
    assert type(member).verify('TINY') is member


def test_url_is_that_of_the_file(member: PackagedWeights) -> None:
    assert member.url == member.path.as_uri()
    assert '%20' in member.url


def test_our_task_takes_enum_string_and_path(member: PackagedWeights) -> None:
    expected = member.get_state_dict()
    for weights in (member, str(member), str(member.path), member.path):
        task = SIGMAETask(
            NAME, weights, bands=BANDS, size=32, masking='random', indices=('ndvi',)
        )
        loaded = task.model.encoder.state_dict()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    task = SIGMAETask(NAME, member, bands=BANDS[::-1], size=32, indices=('ndvi',))
    kernel = task.model.encoder.patch_embed.proj.weight
    assert torch.equal(kernel.flip(1), expected['patch_embed.proj.weight'])


def test_ours_are_found_without_torchgeos_registry(
    member: PackagedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str) -> WeightsEnum:
        raise ValueError(f'{name} is not a valid WeightsEnum')

    monkeypatch.setattr('torchgeo_sigmae.weights.read.get_weight', gone)
    monkeypatch.setattr('torchgeo_sigmae.weights.read.SIGMAE_Weights', type(member))
    assert find_weights('MadeHere_Weights.TINY') is member
    assert read_weights('MadeHere_Weights.TINY').info['mean'] == MEAN


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
    assert checkpoint.info == member.meta
    assert passed == {'progress': True, 'check_hash': True, 'weights_only': True}


@pytest.mark.parametrize('dtype', [torch.uint16, torch.int32, torch.float32])
def test_transforms_take_raw_values_in_any_type(dtype: torch.dtype) -> None:
    transforms = normalization(MEAN, STD)
    raw = torch.tensor(MEAN).add(100).to(dtype).view(4, 1, 1).repeat(1, 2, 2)
    before = raw.clone()
    expected = (100 / torch.tensor(STD)).view(4, 1, 1).expand(4, 2, 2)
    actual = transforms(raw)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)
    assert torch.equal(raw, before), 'the input was written to'
    sample = transforms({'image': raw, 'label': 3})
    torch.testing.assert_close(sample['image'], expected)
    assert sample['label'] == 3
