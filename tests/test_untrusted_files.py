# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Untrusted files: nothing in them is executed, and their claims are checked."""

import os
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kornia.augmentation import AugmentationSequential
from torch.utils.data import DataLoader

from helpers.geotiffs import write
from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import SIGMAETask
from torchgeo_sigmae._compat import Classification, SemanticSegmentation
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.callbacks import newest_checkpoint
from torchgeo_sigmae.callbacks.pretrained_inputs import read_own_weights
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.tasks.statistics import BatchStatistics
from torchgeo_sigmae.weights import adapt_bands, read_weights

pytestmark = pytest.mark.usefixtures('narrow_models')

NAME = 'sigmae_vit_tiny_patch8'

#: The names files are hard to read under.
ODD = 'a #%?& ü name'


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.fixture(scope='module')
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training checkpoint as it should be."""
    path = tmp_path_factory.mktemp('sound')
    task = small_task(encoder_kwargs={'positions': 'learnable'})
    trainer = quiet_trainer(path, max_steps=1)
    trainer.fit(task, DataLoader([{'image': 3000 * torch.rand(10, 32, 32)}] * 2, 2))
    trainer.save_checkpoint(path / 'x.ckpt')
    content: dict[str, Any] = torch.load(path / 'x.ckpt', weights_only=True)
    del content['optimizer_states']  # for speed
    return content


@pytest.fixture(scope='module')
def small(sound: dict[str, Any]) -> dict[str, Any]:
    """The same without its large tensors, which nobody is to look at."""
    tensors = sound['state_dict']
    few = {key: value for key, value in tensors.items() if value.numel() < 25_000}
    assert {'model.pos_embed', 'decoder.mask_token'} <= few.keys()
    few['model.patch_embed.proj.weight'] = tensors['model.patch_embed.proj.weight']
    return {**sound, 'state_dict': few}


def scene(path: Path) -> Path:
    return write(
        path / 's.tif', np.full((10, 64, 64), 3000, 'uint16'), SENTINEL2_TEN_BANDS
    )


def fit_from(path: Path) -> None:
    """Continue a run, as the command line does."""
    folder = path.parent / 'run' / 'resume'
    folder.mkdir(parents=True)
    shutil.copy(path, folder / 'step=000000001.ckpt')
    newest_checkpoint(folder)


def command(*arguments: str) -> Callable[[Path], None]:
    """A subcommand of ours: CHECKPOINT, SCENE and FOLDER are filled in."""

    def run(path: Path) -> None:
        words = {'CHECKPOINT': path, 'FOLDER': path.parent / 'out'}
        if 'SCENE' in arguments:
            words['SCENE'] = scene(path.parent)
        if 'SCENES' in arguments:
            words['SCENES'] = scene(path.parent / 'scenes').parent
        main([str(words.get(argument, argument)) for argument in arguments])

    return run


def finetune(path: Path) -> None:
    """FineTuning looks into the file itself."""
    if read_own_weights(str(path)) is None:
        raise ValueError('not one of ours')


#: Everything that reads a file of weights.
READERS: dict[str, Callable[[Path], object]] = {
    'read_weights': read_weights,
    'weights=': lambda path: small_task(weights=str(path)),
    'weights= of a folder': lambda path: small_task(weights=str(folder_of(path))),
    'load_from_checkpoint': lambda path: SIGMAETask.load_from_checkpoint(path),
    'FrozenEncoder': FrozenEncoder.load,
    'adapt_bands': lambda path: adapt_bands(path, ['B04'], path.with_suffix('.out')),
    'Classification': lambda path: Classification(
        model=NAME, weights=str(path), in_channels=10, num_classes=2
    ),
    'SemanticSegmentation': lambda path: SemanticSegmentation(
        model='upernet', backbone=NAME, weights=str(path), in_channels=10,
        num_classes=2,
    ),
    'FineTuning': finetune,
    'resume': fit_from,
}  # fmt: skip

#: Commands that read one.
COMMANDS = {
    'report': command(
        'evaluate', 'reconstruction', 'CHECKPOINT', '--data', 'SCENES', '--size', '32',
        '-o', 'FOLDER',
    ),
    'embed': command(
        'map', 'embedding', 'SCENE', '--weights', 'CHECKPOINT', '--size', '32',
        '-o', 'FOLDER',
    ),
    'reconstruct': command(
        'map', 'reconstruction', 'SCENE', '--weights', 'CHECKPOINT', '-o', 'FOLDER'
    ),
    'adapt-bands': command(
        'adapt-bands', 'CHECKPOINT', '--bands', 'B04', '-o', 'FOLDER'
    ),
}  # fmt: skip


def folder_of(path: Path) -> Path:
    """The folder of a run with this checkpoint."""
    folder = path.parent / 'stage' / 'resume'
    folder.mkdir(parents=True)
    shutil.copy(path, folder / 'step=1.ckpt')
    return folder.parent


#: How they refuse a file. TorchGeo's own pass on torch's error.
REFUSALS = (ValueError, RuntimeError, pickle.UnpicklingError)


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('legacy', [False, True])
def test_code_in_a_file_is_not_executed(
    reader: str, legacy: bool, small: dict[str, Any], tmp_path: Path
) -> None:
    witness, path = tmp_path / 'executed', tmp_path / 'x.ckpt'
    content = {**small, 'payload': Payload(witness)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(REFUSALS):
        READERS[reader](path)
    assert not witness.exists()
    # The payload is live.
    torch.load(path, weights_only=False)
    assert witness.is_dir()


@pytest.mark.parametrize('reader', [*READERS, *COMMANDS])
def test_a_sound_file_of_any_name_is_read(
    reader: str, sound: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / f'{ODD} folder' / f'{ODD}.ckpt'
    path.parent.mkdir()
    torch.save(sound, path)
    (READERS | COMMANDS)[reader](path)


def altered(content: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The same in both places where a checkpoint tells of its encoder."""
    return {
        **content,
        'hyper_parameters': {**content['hyper_parameters'], **change},
        'encoder': {**content['encoder'], **change},
    }


#: What cannot be true of an encoder.
CLAIMS: dict[str, dict[str, Any]] = {
    'size': {'size': 10**9},
    'size that is just too large': {'size': 4096},
    'size of nothing': {'size': 0},
    'size that is no number': {'size': 'large'},
    'patch_size': {'patch_size': 10**6},
    'patch_size of another': {'patch_size': 16},
    'bands': {'bands': ['B02'] * 10**5},
    'names of bands': {'bands': ['B' * 10_000_000]},
    'bands that are no list': {'bands': 7},
    'bands that are no names': {'bands': [1, 2]},
    'depth': {'decoder_depth': 10**6},
    'depth that is just too large': {'decoder_depth': 900},
    'width': {'decoder_dim': 10**7},
    'width that is just too large': {'decoder_dim': 60_000},
    'heads': {'decoder_num_heads': 10**9},
    'mean of too few': {'mean': [1.0, 2.0], 'patch_size': 8},
    'std without end': {'std': [float('inf')] * 10},
    'std 0': {'std': [0.0] * 10},
    'mean of words': {'mean': ['a'] * 10},
    'scale': {'scale': float('nan')},
    'another model': {'model': 'vit_large_patch16_224'},
    'no model': {'model': 'no_such_model'},
    'model that is no name': {'model': 7},
    'a model on the network': {'model': 'hf-hub:someone/something'},
}


#: Nothing else is wrong with these files than what is claimed.
REASONS = 'cannot be what it claims|holds [0-9]* numbers|timm does not know'


@contextmanager
def memory_limit(size: int = 2**31) -> Iterator[None]:
    """Let this process take no more than so many bytes beyond what it has."""
    with open('/proc/self/statm') as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize('claim', CLAIMS)
def test_claims_are_not_believed(
    claim: str, small: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / 'x.ckpt'
    torch.save(altered(small, CLAIMS[claim]), path)
    only_task = {'decoder_depth', 'decoder_dim'} & set(CLAIMS[claim])
    readers = ['load_from_checkpoint']
    if not only_task:
        readers += ['read_weights']
    if CLAIMS[claim].get('model'):
        readers = ['load_from_checkpoint', 'FrozenEncoder']
    for reader in readers:
        with memory_limit(), pytest.raises(ValueError, match=REASONS) as error:
            READERS[reader](path)
        assert 'x.ckpt' in str(error.value)
        assert len(str(error.value)) < 600


def rewritten(
    source: Path, target: Path, compression: int, change: dict[str, bytes]
) -> None:
    """The same archive, packed otherwise or with other entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w') as new:
        for entry in old.infolist():
            name = entry.filename.partition('/')[2]
            content = change.get(name, old.read(entry))
            new.writestr(entry.filename, content, compression)


def bombs(path: Path) -> Iterator[tuple[str, Path]]:
    """Small files that become large ones."""
    small = path / 'small.ckpt'
    weight = {'model.patch_embed.proj.weight': torch.zeros(4)}
    content = {'hyper_parameters': {'model': NAME}, 'state_dict': weight}
    torch.save(content, small)
    packed = path / 'packed.ckpt'
    zeros = bytes(2**27)
    rewritten(small, packed, zipfile.ZIP_DEFLATED, {'data/0': zeros})
    assert packed.stat().st_size < 2**20
    yield 'bytes are claimed', packed
    pickled = path / 'pickled.ckpt'
    rewritten(small, pickled, zipfile.ZIP_DEFLATED, {'data.pkl': zeros})
    yield 'bytes are claimed', pickled
    # The directory of the archive says the entry is larger than the file.
    claims = path / 'claims.ckpt'
    raw = bytearray(small.read_bytes())
    place = raw.rindex(b'PK\x01\x02', 0, raw.rindex(b'data/0'))
    raw[place + 20 : place + 28] = (2**31 - 1).to_bytes(4, 'little') * 2
    claims.write_bytes(raw)
    yield 'bytes are claimed', claims
    # A tensor of four bytes that is a trillion times the same number.
    for dtype in (torch.float16, torch.float32):
        view = path / f'{dtype}.ckpt'
        weight = {'model.x': torch.zeros(1, dtype=dtype).expand(2**20, 2**20)}
        torch.save({**content, 'state_dict': weight}, view)
        yield 'tensors of', view
    many = path / 'many.ckpt'
    weight = {f'model.{i}': torch.zeros(2**16).half().view(-1) for i in range(1)}
    shared = weight['model.0']
    weight = {f'model.{i}': shared.view(2, -1) for i in range(2000)}
    torch.save({**content, 'state_dict': weight}, many)
    yield 'tensors of', many
    meta = path / 'meta.ckpt'
    weight = {'model.x': torch.empty(2**40, device='meta')}
    torch.save({**content, 'state_dict': weight}, meta)
    yield 'not dense', meta
    sparse = path / 'sparse.ckpt'
    empty = torch.sparse_coo_tensor(torch.empty(1, 0), torch.empty(0), (2**40,))
    torch.save({**content, 'state_dict': {'model.x': empty}}, sparse)
    yield 'not dense', sparse
    legacy = path / 'legacy.ckpt'
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    yield 'not a zip file', legacy


def test_small_files_do_not_become_large_ones(tmp_path: Path) -> None:
    for why, path in bombs(tmp_path):
        with memory_limit(2**26), pytest.raises(ValueError, match=path.name) as error:
            read_weights(path)
        assert why in f'{error.value} {error.value.__cause__}'


def test_statistics_are_checked(sound: dict[str, Any], tmp_path: Path) -> None:
    statistics = sound['statistics']
    assert BatchStatistics.from_dict(statistics).as_dict() == statistics
    for change in (
        {'mean': [1.0]},
        {'mean': ['a'] * 10},
        {'std': [0.0] * 10},
        {'std': [float('nan')] * 10},
        {'std': 1.0},
        {'channels': [11]},
        {'channels': [-1]},
        {'channels': []},
        {'dates': 10**9},
        {'scale': float('inf')},
        {'data_bands': list(range(10))},
        {'another': 1},
    ):
        with pytest.raises(ValueError, match='statistics: the checkpoint holds no'):
            BatchStatistics.from_dict({**statistics, **change})
    content = {**sound, 'statistics': {**statistics, 'std': [0.0] * 10}}
    batch = {**sound['hyper_parameters']['batch'], 'mean': None}
    content['hyper_parameters'] = {**sound['hyper_parameters'], 'batch': batch}
    torch.save(content, tmp_path / 'x.ckpt')
    with pytest.raises(ValueError, match='statistics: the checkpoint holds no'):
        SIGMAETask.load_from_checkpoint(tmp_path / 'x.ckpt')


@pytest.mark.parametrize(
    'change',
    [
        {'patch_embed.band_group': torch.tensor([10**12] * 10)},
        {'patch_embed.band_group': torch.tensor([-1] * 10)},
        {'patch_embed.band_group': torch.zeros(10)},
        {'patch_embed.proj.weight': torch.zeros(32, 1, 0, 8, 8)},
        {'patch_embed.proj.weight': torch.zeros(7)},
        {'spectral_embed': torch.zeros(3)},
        {'pos_embed': torch.zeros(3)},
        {'pos_embed': 'text'},
    ],
)
def test_tensors_of_other_shapes_are_refused(
    change: dict[str, Any], small: dict[str, Any], tmp_path: Path
) -> None:
    tensors = {f'model.{key}': value for key, value in change.items()}
    content = {**small, 'state_dict': {**small['state_dict'], **tensors}}
    torch.save(content, tmp_path / 'x.ckpt')
    for reader in ('read_weights', 'load_from_checkpoint'):
        with pytest.raises(ValueError, match=REASONS):
            READERS[reader](tmp_path / 'x.ckpt')


def test_a_checkpoint_makes_no_other_class_and_reads_no_other_file(
    sound: dict[str, Any], tmp_path: Path
) -> None:
    # What Lightning's command line leaves in a checkpoint, and follows.
    change = {
        '_instantiator': 'lightning.pytorch.cli.instantiate_module',
        '_class_path': 'torchgeo_sigmae.SIGMAETask',
        'transform': {
            'class_path': 'torch.nn.Linear',
            'init_args': {'in_features': 1, 'out_features': 1},
        },
        'weights': str(tmp_path / 'secret'),
    }
    torch.save(altered(sound, change), tmp_path / 'x.ckpt')
    loaded = SIGMAETask.load_from_checkpoint(tmp_path / 'x.ckpt')
    assert type(loaded) is SIGMAETask
    assert isinstance(loaded.transform, AugmentationSequential)
    assert loaded.weights is None
    for key, value in loaded.model.encoder.state_dict().items():
        assert torch.equal(value, sound['state_dict'][f'model.{key}'])


CONFIGS = {
    'apply': 'model: !!python/object/apply:os.mkdir [{0}]',
    'new': 'model: !!python/object/new:os.mkdir [[{0}]]',
    'call in a class': 'model:\n  class_path: os.mkdir\n  init_args:\n    path: {0}',
    'a task': 'model:\n  class_path: SIGMAETask\n  init_args:\n    weights: '
    '!!python/object/apply:os.mkdir [{0}]',
    'a callback': 'trainer:\n  callbacks:\n  - class_path: os.mkdir\n'
    '    init_args:\n      path: {0}',
    'a transform': 'model:\n  class_path: SIGMAETask\n  init_args:\n    transform:\n'
    '      class_path: os.mkdir\n      init_args:\n        path: {0}',
}


@pytest.mark.parametrize('config', CONFIGS)
def test_code_in_a_configuration_is_not_executed(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    witness = tmp_path / 'executed'
    path = tmp_path / 'x.yaml'
    path.write_text(CONFIGS[config].format(witness))
    with pytest.raises(SystemExit):
        main(['fit', f'--config={path}'])
    assert capsys.readouterr().err
    assert not witness.exists()
