# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae pack``, from every kind of source."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchgeo.datamodules import EuroSATDataModule
from torchgeo.datasets import BigEarthNet, EuroSAT

from helpers.geotiffs import RGB, numbered, write
from helpers.processes import join, start
from helpers.shards import write_shards
from helpers.training import quiet_trainer
from torchgeo_sigmae import PackedDataModule, SIGMAETask
from torchgeo_sigmae.bands import (
    BIGEARTHNET_BANDS,
    EUROSAT_BANDS,
    SENTINEL2_TEN_BANDS,
)
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.datasets import PackedChips
from torchgeo_sigmae.datasets.shard_files import ShardFile

EXAMPLES = Path(__file__).parents[2] / 'examples'


def pack(*arguments: object) -> None:
    main(['pack', *map(str, arguments)])


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Six scenes of four chips."""
    for number in range(6):
        image = numbered(64, 64) + number
        write(tmp_path / 'scenes' / f'{number}.tif', image, east=5e5 + 1e4 * number)
    return tmp_path / 'scenes'


def test_a_folder(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / 'pack'
    arguments = [scenes, '--output', output, '--bands', *RGB, '--size', 32]
    pack(*arguments, '--num-workers', 2, '--exclude', '5.tif')
    told = capsys.readouterr().out
    assert '20 chips of 32 x 32 px and 3 bands, 0.00 GiB in 2 files.' in told
    assert f'Wrote {output / "index.json"}.' in told
    chips = PackedChips(output)
    np.testing.assert_array_equal(chips[7]['image'], numbered(64, 64)[:, 32:, 32:] + 1)

    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    pack(*arguments, '--exclude', '5.tif')
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir()}
    pack(output, '--check')
    assert 'are as they were packed' in capsys.readouterr().out

    for others, message in (
        (arguments, 'holds another pack: files was'),
        ([*arguments, '--exclude', '5.tif', '--scale', 0.1], 'scale was None, is 0.1'),
        ([scenes], 'output: not given'),
        ([*arguments, '--shard-size', 0], 'shard_size: 0.0 must be positive'),
        ([*arguments[:3], '--bands', 'B11'], 'B11 not found'),
    ):
        with pytest.raises(SystemExit, match='2'):
            pack(*others)
        error = capsys.readouterr().err
        assert error.startswith('torchgeo-sigmae pack: error: ')
        assert message in error

    shard = output / 'shard-00001.npy'
    shard.write_bytes(shard.read_bytes()[:-1] + b'?')
    with pytest.raises(SystemExit, match='2'):
        pack(output, '--check')
    assert 'shard-00001.npy has another checksum' in capsys.readouterr().err


def test_a_configuration(scenes: Path, tmp_path: Path) -> None:
    """The bands, scenes and splits of SceneDataModule."""
    arguments = {
        'root': str(scenes), 'bands': list(RGB), 'size': 64, 'paths': '[0-3].tif',
        'val_paths': ['3.tif'], 'test_paths': '4.tif',
    }  # fmt: skip
    data = {'class_path': 'SceneDataModule', 'init_args': arguments}
    config = tmp_path / 'fit.yaml'
    config.write_text(yaml.safe_dump({'data': data, 'trainer': {'max_epochs': 1}}))
    pack(config, '-o', tmp_path / 'pack')
    index = PackedChips(tmp_path / 'pack').index
    splits = {Path(each['name']).stem: each['split'] for each in index.sources}
    assert splits == {**dict.fromkeys('012', 'train'), '3': 'val', '4': 'test'}
    assert (index.count, index.shape) == (5, (3, 64, 64))


@pytest.mark.parametrize('source', ['EuroSAT', 'EuroSATDataModule', 'config'])
def test_eurosat(eurosat_root: Path, tmp_path: Path, source: str) -> None:
    bands = ['B8A', 'B04', 'B03']
    if source == 'config':
        source = str(tmp_path / 'fit.yaml')
        arguments = {'root': str(eurosat_root), 'bands': bands}
        data = {'class_path': 'EuroSATDataModule', 'dict_kwargs': arguments}
        Path(source).write_text(yaml.safe_dump({'data': data}))
        pack(source, '-o', tmp_path / 'pack')
    else:
        given = ['--arguments', f'root={eurosat_root}', '--bands', *bands]
        pack(source, '-o', tmp_path / 'pack', *given)
    chips = PackedChips(tmp_path / 'pack')
    assert [each['name'] for each in chips.index.sources] == ['train', 'val', 'test']
    assert [shard.dtype for shard in chips.index.shards] == ['uint16']
    channels = [EUROSAT_BANDS.index(band) for band in bands]
    for number, split, place in ((0, 'train', 0), (159, 'val', 19), (180, 'test', 20)):
        wanted = EuroSAT(eurosat_root, split)[place]
        np.testing.assert_array_equal(chips[number]['image'], wanted['image'][channels])
        assert chips[number]['label'] == wanted['label']


class WithoutTest(EuroSATDataModule):
    """EuroSAT for pretraining, which has no test data."""

    def setup(self, stage: str) -> None:
        """Set up datasets."""
        if stage == 'test':
            raise NotImplementedError('no test data')
        super().setup(stage)


def test_a_split_that_is_missing(
    eurosat_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f'{__name__}.WithoutTest', '--arguments', f'root={eurosat_root}']
    with pytest.raises(SystemExit, match='2'):
        pack(*arguments, '-o', tmp_path, '--splits', 'train', 'test')
    assert 'WithoutTest has no test, only train, val.' in capsys.readouterr().err
    pack(*arguments, '-o', tmp_path)
    printed = capsys.readouterr().out
    assert 'WithoutTest is packed without a test split: no test data' in printed
    assert len(PackedChips(tmp_path)) == 160


def test_bigearthnet(bigearthnet_root: Path, tmp_path: Path) -> None:
    """With labels of many classes."""
    arguments = ['--arguments', f'root={bigearthnet_root}', 'bands=s2']
    pack('BigEarthNet', '-o', tmp_path, *arguments)
    chips = PackedChips(tmp_path)
    assert chips.bands == BIGEARTHNET_BANDS
    assert len(chips) == 3
    wanted = BigEarthNet(bigearthnet_root, 'val', 's2')[0]
    np.testing.assert_array_equal(chips[1]['image'], wanted['image'])
    np.testing.assert_array_equal(chips[1]['label'], wanted['label'])


def test_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every grid once, in shards; an interrupted pack goes on behind what it has."""
    pytest.importorskip('webdataset')
    urls = write_shards(tmp_path / 'shards')
    arguments = ['CopernicusPretrain', '--arguments', f'urls={urls}']
    arguments += ['shardshuffle=false', '--key']
    # Five chips of 2 x 48 x 48 float32 in a shard.
    size = ['--shard-size', 5 * 4 * 2 * 48**2 / 2**20]
    pack(*arguments, 's1_grd.pth', '-o', tmp_path / 'whole', *size)
    chips = PackedChips(tmp_path / 'whole')
    assert chips.bands == ('VV', 'VH')
    assert [shard.count for shard in chips.index.shards] == [5, 5, 2]
    assert len({chip['image'].sum().item() for chip in chips}) == 12

    write = ShardFile.append

    def fail(file: ShardFile, values: np.ndarray) -> None:
        if '00001' in file._path.name:
            raise OSError('no space')
        write(file, values)

    monkeypatch.setattr(ShardFile, 'append', fail)
    with pytest.raises(SystemExit, match='2'):
        pack(*arguments, 's1_grd.pth', '-o', tmp_path / 'pack', *size)
    monkeypatch.undo()
    assert '1 shards in' in capsys.readouterr().err
    pack(*arguments, 's1_grd.pth', '-o', tmp_path / 'pack', *size)
    assert len(PackedChips(tmp_path / 'pack')) == 12

    for others, message in (
        (['s2.pth', '--bands', 'B02'], "key: sample 0 holds no image under 's2.pth'"),
        (['image'], "bands: not known for 'image'"),
        (['s1_grd.pth', '--num-workers', 2], 'a stream is read in order'),
    ):
        with pytest.raises(SystemExit, match='2'):
            pack(*arguments, *others, '-o', tmp_path / 'other')
        assert message in capsys.readouterr().err


def test_keys_are_for_streams(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match='2'):
        pack(scenes, '--bands', *RGB, '--key', 'image1', '-o', tmp_path / 'pack')
    assert "key: 'image1' is for streams" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['EuroSET'], "no class of torchgeo.datasets .* Did you mean 'EuroSAT'"),
        (['EuroSAT', '--arguments', 'data'], "arguments: 'data' is no name=value"),
        (['L7IrishDataModule'], 'samples windows in space'),
        (['empty.yaml'], 'has no section data'),
        (['fit.yaml'], 'Nowhere'),
        (['pack', '--check'], 'is no pack'),
    ],
)
def test_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('pack').mkdir()
    Path('empty.yaml').write_text('model: 1\n')
    Path('fit.yaml').write_text('data: {class_path: Nowhere}\n')
    with pytest.raises(SystemExit, match='2'):
        pack(*arguments, '--output', 'other')
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert re.search(message, error), error


def test_pretraining_from_the_example_config(
    real_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the file, and the second again."""
    monkeypatch.chdir(tmp_path)
    pack(real_data('scenes'), '--paths', 'ravaen*', '--output', 'data/pack')
    command = [
        'fit',
        f'--config={EXAMPLES / "pretrain_packed.yaml"}',
        '--data.init_args.root=data/pack',
        '--data.init_args.length=32',
        '--data.init_args.val_fraction=0.2',
        '--trainer.max_epochs=1',
        '--trainer.check_val_every_n_epoch=1',
        '--trainer.accelerator=cpu',
        '--trainer.enable_progress_bar=false',
    ]
    main(command)
    (path,) = (tmp_path / 'outputs' / 'pretrain_packed' / 'resume').glob('*.ckpt')
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint['global_step'] == 2
    assert checkpoint['encoder']['trained_on'][0]['root'] == 'data/pack'
    said: list[str] = []
    monkeypatch.setattr('torchgeo_sigmae.cli.fit.rank_zero_info', said.append)
    main(command)
    assert 'resume/step=000000002.ckpt (step 2)' in said[0]


# Few places do not add up to the fraction for validation.
@pytest.mark.filterwarnings('ignore:val_fraction')
@pytest.mark.parametrize('source', ['pool', 'partial', 'BigEarthNet', 'stream'])
def test_training_from_packs_of_other_sources(
    real_data: Callable[[str], Path], tmp_path: Path, source: str
) -> None:
    bands = list(SENTINEL2_TEN_BANDS)
    # Three patches leave none to validate on.
    val = {} if source == 'BigEarthNet' else {'val_fraction': 0.3}
    if source == 'pool':
        arguments = [real_data('pool'), '--paths', 'eotdl__Boadella*', '--size', 64]
    elif source == 'partial':
        arguments = [real_data('partial'), '--paths', '*algiers*', '*areaA*']
        # The port lacks B05.
        bands = ['B02', 'B03', 'B04', 'B05', 'B08', 'B11']
        arguments += ['--allow-missing-bands', '--bands', *bands]
    elif source == 'BigEarthNet':
        arguments = ['BigEarthNet', '--arguments', 'bands=s2']
        arguments += [f'root={real_data("bigearthnet")}']
    else:
        pytest.importorskip('webdataset')
        urls = write_shards(tmp_path / 'shards')
        arguments = ['CopernicusPretrain', '--key', 's2_toa.pth']
        arguments += ['--arguments', f'urls={urls}', 'shardshuffle=false']
    pack(*arguments, '--output', tmp_path / 'pack')
    task = SIGMAETask(
        model='sigmae_vit_tiny_patch8', bands=bands, size=32, mask_ratio=0.75,
        decoder_dim=32, decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    data = PackedDataModule(
        tmp_path / 'pack', bands, size=32, batch_size=3, length=6, **val
    )
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, data)
    assert trainer.global_step == 2
    metrics = trainer.callback_metrics
    assert metrics['train_loss'].isfinite()
    assert metrics['val_loss'].isfinite()


@pytest.mark.slow
def test_a_killed_pack_goes_on(
    scene: Callable[[int, int], np.ndarray], tmp_path: Path
) -> None:
    for number in range(4):
        write(tmp_path / 'scenes' / f'{number}.tif', scene(number, 128)[1:4])
    arguments = [tmp_path / 'scenes', '--bands', *RGB, '--size', 16]
    arguments += ['--shard-size', 0.1]
    pack(*arguments, '-o', tmp_path / 'whole')
    whole = {path.name: path.read_bytes() for path in (tmp_path / 'whole').iterdir()}
    output = tmp_path / 'pack'
    child = start(pack, *arguments, '-o', output, '--num-workers', 2)
    while not (output / 'packing' / '00002.json').exists():
        assert child.exitcode is None
        time.sleep(0.001)
    os.killpg(child.pid or 0, signal.SIGKILL)
    join([child])
    assert not (output / 'index.json').exists()
    shard = output / 'shard-00002.npy'
    before = shard.stat().st_mtime_ns
    pack(*arguments, '-o', output)
    assert shard.stat().st_mtime_ns == before
    assert {path.name: path.read_bytes() for path in output.iterdir()} == whole
