# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import os
import pickle
from pathlib import Path

import pytest
import torch

from torchgeo_sigmae.models import (
    build_encoder,
    load_encoder_weights,
    read_encoder,
    save_encoder,
)
from torchgeo_sigmae.models.checkpoint import (
    atomic_save,
    from_checkpoint_keys,
    to_checkpoint_keys,
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
    save_encoder(encoder(), file, {'model': NAME, 'bands': list(BANDS)})
    return file


def test_round_trip(path: Path) -> None:
    saved = read_encoder(path)
    assert saved.hyper_parameters == {'model': NAME, 'bands': list(BANDS)}
    model = encoder()
    load_encoder_weights(model, path, BANDS)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved.state_dict[key])
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
    with pytest.raises(ValueError, match="hyper_parameters: 'model' is missing"):
        save_encoder(encoder(), tmp_path / 'x.pth', {})


def test_code_in_a_file_is_not_executed(tmp_path: Path) -> None:
    witness = tmp_path / 'executed'

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(witness),))

    file = tmp_path / 'evil.pth'
    torch.save({'hyper_parameters': Payload(), 'state_dict': {}}, file)
    with pytest.raises(ValueError, match='cannot be read as tensors and plain values'):
        read_encoder(file)
    assert not witness.exists()


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
        read_encoder(file)


def test_truncated_file_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match='cannot be read as tensors'):
        read_encoder(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='neither a file nor the name'):
        load_encoder_weights(encoder(), str(tmp_path / 'nothing.pth'))
    with pytest.raises(FileNotFoundError, match='there is no file'):
        read_encoder(tmp_path / 'nothing.pth')


def test_weights_of_another_architecture_are_refused(path: Path) -> None:
    wider = build_encoder('sigmae_vit_small_patch8', 4, 32)
    with pytest.raises(ValueError, match=r"made for model='sigmae_vit_tiny_patch8'"):
        load_encoder_weights(wider, path)
    deeper = build_encoder(NAME, 4, 32)
    with pytest.raises(ValueError, match=r'132 missing tensors \(blocks.1.norm1'):
        load_encoder_weights(deeper, path)
    with pytest.raises(ValueError, match='differently shaped tensors'):
        load_encoder_weights(encoder(channels=10), path)


def test_weights_of_other_bands_are_refused(path: Path) -> None:
    other = ('B02', 'B04', 'B08', 'B11')
    with pytest.raises(ValueError, match=r'made for the bands .*Pass bands=\['):
        load_encoder_weights(encoder(), path, other)


def test_plain_timm_weights_of_another_size_are_resampled(tmp_path: Path) -> None:
    source, target = (
        build_encoder('vit_tiny_patch16_224', 4, size) for size in (64, 128)
    )
    save_encoder(source, tmp_path / 'x.pth', {'model': 'vit_tiny_patch16_224'})
    load_encoder_weights(target, tmp_path / 'x.pth')
    assert target.pos_embed.shape == (1, 65, 192)
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])


def test_checkpoint_keys_round_trip() -> None:
    own = {'model.encoder.a.model.encoder.b': 1, 'model.decoder.c': 2, 'other.d': 3}
    kept = to_checkpoint_keys(own)
    assert kept == {'model.a.model.encoder.b': 1, 'decoder.c': 2, 'other.d': 3}
    assert from_checkpoint_keys(kept) == own


def test_weights_of_another_size_are_resampled(path: Path) -> None:
    model = encoder(size=64)
    load_encoder_weights(model, path)
    assert model.pos_embed.shape == (1, 65, 192)
