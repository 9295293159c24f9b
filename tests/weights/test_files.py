# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from torchgeo_sigmae.bands import SENTINEL2
from torchgeo_sigmae.models import build_encoder
from torchgeo_sigmae.weights import (
    SIGMAE_Weights,
    Weights,
    load_weights,
    read_weights,
    write_weights,
)
from torchgeo_sigmae.weights.files import (
    atomic_save,
)

NAME = 'sigmae_vit_tiny_patch8'
BANDS = ('B03', 'B04', 'B08', 'B11')


def encoder(channels: int = 4, size: int = 32) -> torch.nn.Module:
    model = build_encoder(NAME, channels, size)
    model.blocks = model.blocks[:1]
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / 'a folder' / 'ëncoder.pth'
    info = {'model': NAME, 'bands': list(BANDS), 'sensor': 'sentinel2'}
    write_weights(Weights(encoder().state_dict(), info=info), file)
    return file


def test_round_trip(path: Path) -> None:
    saved = read_weights(path)
    expected = {'model': NAME, 'bands': list(BANDS), 'sensor': 'sentinel2'}
    assert saved.info == expected
    assert saved.decoder == {}
    assert saved.name == str(path)
    model = encoder()
    load_weights(model, path, BANDS)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved.encoder[key])
    assert not list(path.parent.glob('.*')), 'a temporary file was left'


def test_a_failed_save_keeps_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        atomic_save({'state_dict': lambda: None}, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_saved_files_are_as_readable_as_any(path: Path, tmp_path: Path) -> None:
    plain = tmp_path / 'plain'
    plain.write_text('')
    assert path.stat().st_mode == plain.stat().st_mode


def test_the_name_is_required(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="info: 'model' is missing"):
        write_weights(Weights(encoder().state_dict(), info={}), tmp_path / 'x.pth')


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'not a checkpoint',
        b'\x81',  # to an unpickler: take from an empty stack
        {'state_dict': {}},
        {'hyper_parameters': {}, 'state_dict': {}},
        {'hyper_parameters': {'model': NAME}},
        [1, 2],
        torch.zeros(3),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / 'file.pth'
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=r'weights: .*Pass a file made by'):
        read_weights(file)


def test_truncated_file_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match='cannot be read as tensors'):
        read_weights(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='neither a file nor the name'):
        load_weights(encoder(), str(tmp_path / 'nothing.pth'))
    with pytest.raises(FileNotFoundError, match='neither a file nor the name'):
        read_weights(tmp_path / 'nothing.pth')


def test_weights_of_another_architecture_are_refused(path: Path) -> None:
    wider = build_encoder('sigmae_vit_small_patch8', 4, 32)
    with pytest.raises(ValueError, match=r"made for model='sigmae_vit_tiny_patch8'"):
        load_weights(wider, path)
    deeper = build_encoder(NAME, 4, 32)
    with pytest.raises(ValueError, match=r'132 missing tensors \(blocks.1.norm1'):
        load_weights(deeper, path)
    with pytest.raises(ValueError, match='differently shaped tensors'):
        load_weights(encoder(channels=10), path)


def test_weights_for_other_bands_are_adapted(path: Path) -> None:
    model, key = encoder(), 'patch_embed.proj.weight'
    load_weights(model, path, ('B02', 'B04', 'B08', 'B11'))
    before, after = read_weights(path).encoder, model.state_dict()
    assert torch.equal(after[key][:, 1:], before[key][:, 1:])
    assert not after[key][:, 0].any()
    assert all(torch.equal(after[k], value) for k, value in before.items() if k != key)


def test_bands_without_a_sensor_must_be_the_same(tmp_path: Path) -> None:
    info = {'model': NAME, 'bands': ['b3', 'red', 'B8', 'B11']}
    write_weights(Weights(encoder().state_dict(), info=info), tmp_path / 'x.pth')
    load_weights(encoder(), tmp_path / 'x.pth', BANDS)
    with pytest.raises(ValueError, match='does not name its bands and their sensor'):
        load_weights(encoder(), tmp_path / 'x.pth', ('B02', 'B04', 'B08', 'B11'))


def test_plain_timm_weights_of_another_size_are_resampled(tmp_path: Path) -> None:
    source, target = (
        build_encoder('vit_tiny_patch16_224', 4, size) for size in (64, 128)
    )
    write_weights(
        Weights(source.state_dict(), info={'model': 'vit_tiny_patch16_224'}),
        tmp_path / 'x.pth',
    )
    load_weights(target, tmp_path / 'x.pth')
    assert target.pos_embed.shape == (1, 65, 192)
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])


@pytest.mark.parametrize('wrapper', ['_orig_mod.', 'module.', 'module._orig_mod.'])
def test_prefixes_of_wrappers_are_removed(wrapper: str, path: Path) -> None:
    expected = read_weights(path).encoder
    content = torch.load(path)
    for new, old in (
        (f'model.{wrapper}', 'model.'),  # task.model.encoder was wrapped
        (f'model.{wrapper}encoder.', 'model.'),  # task.model was
        (f'{wrapper}model.encoder.', 'model.'),  # all of it was
    ):
        state = {
            new + key.removeprefix(old): value
            for key, value in content['state_dict'].items()
        }
        state[new.replace('encoder', 'decoder') + 'x'] = torch.zeros(1)
        torch.save({**content, 'state_dict': state}, path)
        actual = read_weights(path)
        if 'encoder' in new:
            assert list(actual.decoder) == ['x']
        else:
            del actual.encoder['x']
        assert actual.encoder.keys() == expected.keys()
        assert all(torch.equal(actual.encoder[k], v) for k, v in expected.items())
        torch.save(content, path)


def test_a_compiled_encoder_is_written_under_plain_keys(tmp_path: Path) -> None:
    state = encoder().state_dict()
    compiled = {f'_orig_mod.{key}': value for key, value in state.items()}
    write_weights(Weights(compiled, info={'model': NAME}), tmp_path / 'x.pth')
    stored = torch.load(tmp_path / 'x.pth')['state_dict']
    assert list(stored) == [f'model.{key}' for key in state]


def test_information_becomes_plain(tmp_path: Path) -> None:
    info = {
        'model': NAME,
        'mean': np.array([1.0, 2.0]),
        'size': np.int64(32),
        'root': Path('/data'),
        'sensor': SENTINEL2,
        'weights': SIGMAE_Weights.SENTINEL2,
        'mask_ratio': (np.float32(0.5), 0.75),
        'stages': [{'steps': np.int32(3)}],
    }
    write_weights(Weights(encoder().state_dict(), info=info), tmp_path / 'x.pth')
    assert torch.load(tmp_path / 'x.pth', weights_only=True)['hyper_parameters'] == {
        'model': NAME,
        'mean': [1.0, 2.0],
        'size': 32,
        'root': '/data',
        'sensor': 'sentinel2',
        'weights': 'SIGMAE_Weights.SENTINEL2',
        'mask_ratio': (0.5, 0.75),
        'stages': [{'steps': 3}],
    }
