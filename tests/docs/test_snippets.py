# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Every snippet and every command of README and docs does what the page says.

- Python blocks run, those of a page one after the other, on generated data in the
  places the pages name. Training is cut to one step of four samples,
  encoders are tiny, and probes have two folds.
- ``torchgeo-sigmae`` commands run, but for ``fit``, whose task, datamodule and trainer
  are made from the configuration (it trains in test_main.py and test_examples.py), and
  ``demo``, which runs in test_main.py and is parsed here, as are probes with folds.
- Benchmarks and scripts, which take minutes to hours, parse the arguments; of long
  trials and make, the name is looked up; of pip, the extras.
- Configurations name classes that exist and arguments they take.

Anything else fails, so a new kind of snippet needs a line here.
"""

import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from configparser import ConfigParser
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch
import numpy as np
import pytest
import rasterio
import yaml
from lightning.pytorch import Trainer
from rasterio.transform import from_origin
from torchgeo.datasets import EuroSAT

from helpers.geotiffs import write
from helpers.shards import write_shards
from helpers.snippets import ROOT, SILENT, Block, blocks, commands, pages, parse
from helpers.training import quiet_trainer
from torchgeo_sigmae import (
    ResumableCheckpoint,
    SceneDataModule,
    SIGMAETask,
    _compat,
)
from torchgeo_sigmae.bands import (
    EUROSAT_BANDS,
    SENTINEL2_BANDS,
    SENTINEL2_TEN_BANDS,
)
from torchgeo_sigmae.cli import COMMANDS, main
from torchgeo_sigmae.cli.fit import SIGMAECLI
from torchgeo_sigmae.cli.parser import Parser

#: What the pages say the reader has, beside files.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    'docs/quickstart.md': lambda: {'MEAN': 1000.0, 'STD': 500.0},
    'docs/reconstruction.md': lambda: {'datamodule': scenes()},
    'docs/resume.md': lambda: {'task': tiny('sigmae'), 'datamodule': scenes()},
}
#: Modules of extras that the Python of a page needs.
NEEDED = {'docs/encoders.md': ('onnxruntime', 'onnxscript')}
#: Pages whose Python needs what their own test trains: tests/test_own_geotiffs.py.
ELSEWHERE = ('docs/own_classifier.md',)
#: Those of EuroSAT.
CLASSES = (
    'AnnualCrop', 'Forest', 'HerbaceousVegetation', 'Highway', 'Industrial', 'Pasture',
    'PermanentCrop', 'Residential', 'River', 'SeaLake',
)  # fmt: skip
#: Pages on the first edition.
PAST = ('docs/dev/ablation.md', 'docs/dev/names.md', 'docs/dev/models.md')
#: Those of the repository.
FOLDERS = 'benchmarks|docs|examples|tests|torchgeo_sigmae'
_DONE: set[tuple[str, ...]] = set()
#: What stands for a name of the reader's own.
KNOWN = {
    'CHECKPOINT': 'run.ckpt',
    'ENCODER': 'encoder.pth',
    'OUTPUT.png': 'output.png',
    'PATH': 'data/scenes',
    'RUN.ckpt': 'run.ckpt',
    'SCENE.tif': 'scene.tif',
    'checkpoint.ckpt': 'run.ckpt',
    'folder': 'data/scenes',
    'scenes': 'data/scenes',
}


def scenes(**arguments: Any) -> SceneDataModule:
    return SceneDataModule(
        'data/scenes', **{'size': 64, 'batch_size': 4, 'length': 4, **arguments}
    )


def tiny(family: str, **arguments: Any) -> SIGMAETask:
    return SIGMAETask(f'{family}_vit_tiny_patch8', size=64, **arguments)


class ShortTrainer(Trainer):
    """One step on the CPU, whatever is asked for."""

    def __init__(self, **arguments: Any) -> None:
        cut = {
            'max_epochs': 1,
            'limit_train_batches': 1,
            'limit_val_batches': 1,
            'num_sanity_val_steps': 0,
            'accelerator': 'cpu',
            'devices': 1,
            'num_nodes': 1,
            'strategy': 'auto',
            'logger': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
        }
        super().__init__(**{**arguments, **cut})


def product(folder: Path, image: np.ndarray, suffix: str) -> None:
    """One file a band, as in a Sentinel-2 product."""
    folder.mkdir(parents=True)
    for band, values in zip(SENTINEL2_BANDS, image, strict=True):
        with rasterio.open(
            folder / f'T32TQM_20220301T101010_{band}{suffix}.tif', 'w', count=1,
            height=len(values), width=values.shape[1], dtype='uint16', crs='EPSG:32632',
            transform=from_origin(611_000, 5_180_500, 10, 10),
        ) as file:  # fmt: skip
            file.write(values, 1)


def eurosat(root: Path, scene: Callable[[int, int], np.ndarray]) -> None:
    """Ten classes as TorchGeo's EuroSAT finds them, six chips each."""
    order = [SENTINEL2_BANDS.index(band) for band in EUROSAT_BANDS]
    for split, count in (('train', 4), ('val', 1), ('test', 1)):
        names = [f'{c}_{split}{i}' for c in CLASSES for i in range(count)]
        for index, name in enumerate(names):
            path = root / EuroSAT.base_dir / name.split('_')[0] / f'{name}.tif'
            write(path, scene(index % 32, 64)[order], None)
        lines = ''.join(f'{name}.jpg\n' for name in names)
        (root / f'eurosat-{split}.txt').write_text(lines)


@pytest.fixture(scope='module')
def template(
    scene: Callable[[int, int], np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The files the pages speak of."""
    root = tmp_path_factory.mktemp('reader')
    eurosat(root / 'data' / 'eurosat', scene)
    ten = [SENTINEL2_BANDS.index(band) for band in SENTINEL2_TEN_BANDS]
    for index, name in enumerate(('nora', 'ravaen', 'dsen2_49JGM', *'abcdefg')):
        path = root / 'data' / 'scenes' / f'{name}.tif'
        write(path, scene(index, 96)[ten], SENTINEL2_TEN_BANDS, east=4e5 + 1e4 * index)
        landsat = [f'B{number}' for number in range(1, 8)]
        numbers = np.round((scene(index, 96)[:7] * 1e-4 + 0.2) / 2.75e-5)
        path = root / 'data' / 'landsat' / f'{name}.tif'
        write(path, numbers.astype('uint16'), landsat)
    write_shards(root / 'data' / 'copernicus')
    shutil.copytree(root / 'data' / 'scenes', root / 'data' / 'bigearthnet')
    shutil.copytree(root / 'data' / 'scenes', root / 'data' / 'barkbeetle')
    product(root / 'scene.SAFE' / 'IMG_DATA' / 'R10m', scene(1, 96), '_10m')
    product(root / 'data' / 'tile', scene(1, 96), '')
    path = write(root / 'scene.tif', scene(1, 96)[ten], SENTINEL2_TEN_BANDS)
    with rasterio.open(path, 'r+') as file:
        file.crs = 'EPSG:32632'
        file.transform = from_origin(610_500, 5_180_500, 10, 10)
    for name in ('examples', 'torchgeo_sigmae', 'benchmarks'):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.fixture(scope='module')
def trained(template: Path) -> Path:
    """A run of one step of every kind of encoder the pages load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(template)
        main(['pack', 'data/scenes', '--output', 'data/pack'])
        small = {'decoder_dim': 128, 'decoder_depth': 2, 'decoder_num_heads': 4}
        for folder, family, arguments in (
            ('run', 'sigmae', {}),
            ('pretrain_s2mae', 's2mae', small),
            ('stage1', 's2mae', {}),
        ):
            one = tiny(family, **arguments)
            run = quiet_trainer(
                template / 'outputs' / folder,
                max_steps=1,
                limit_val_batches=0,
                callbacks=[ResumableCheckpoint()],
            )
            run.fit(one, scenes())
            run.save_checkpoint(template / f'{family}.ckpt')
            one.export(template / f'{family}.pth')
            if family == 'sigmae':
                one.export(template / 'encoder')
        (template / 'run.ckpt').symlink_to('sigmae.ckpt')
        (template / 'last.ckpt').symlink_to('sigmae.ckpt')
    return template


@pytest.fixture
def reader(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with these files, and short training."""
    for path in trained.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / 'outputs').unlink()
    (tmp_path / 'outputs').mkdir()
    for name in ('pretrain_s2mae', 'stage1'):
        (tmp_path / 'outputs' / name).symlink_to(trained / 'outputs' / name)
    (tmp_path / 'encoder.pth').symlink_to(trained / 'sigmae.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lightning.pytorch, 'Trainer', ShortTrainer)
    if importlib.util.find_spec('torchgeo.tasks') is None:
        # As the pages say: before TorchGeo 0.10 these are in torchgeo.trainers.
        older = types.ModuleType('torchgeo.tasks')
        vars(older).update(vars(_compat))
        monkeypatch.setitem(sys.modules, 'torchgeo.tasks', older)
    return tmp_path


def region(items: Any, bands: list[str], **options: Any) -> Any:
    """What odc.stac.load returns of two dates, without a network."""
    xarray = pytest.importorskip('xarray', reason='needs the extra xarray')
    rioxarray = pytest.importorskip('rioxarray', reason='needs the extra xarray')
    layers = rioxarray.open_rasterio('scene.tif', chunks=options['chunks'])
    dates = xarray.concat([layers, layers + 50], 'time')
    known = {name: dates.isel(band=i, drop=True) for i, name in enumerate(bands[:-1])}
    return xarray.Dataset({**known, bands[-1]: xarray.full_like(known['red'], 4)})


@pytest.fixture
def stac(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that read from catalogs, and a cluster in this process."""
    odc = mock.MagicMock()
    odc.stac.load = region
    monkeypatch.setitem(sys.modules, 'odc', odc)
    monkeypatch.setitem(sys.modules, 'odc.stac', odc.stac)
    monkeypatch.setitem(sys.modules, 'pystac_client', mock.MagicMock())
    if importlib.util.find_spec('distributed') is not None:
        import distributed

        local = partial(distributed.Client, processes=False, dashboard_address=None)
        monkeypatch.setattr('dask.distributed.Client', local)


def of(*languages: str) -> list[str]:
    """Pages with a block in one of these languages."""
    return [p for p in pages() if any(b.language in languages for b in blocks(p))]


def test_no_block_is_passed_over() -> None:
    known = {'bash', 'console', 'python', 'yaml', *SILENT}
    every = [block for page in pages() for block in blocks(page)]
    assert {block.language for block in every} <= known
    # Blocks without a language would be text to this test, whatever they hold.
    for page in pages():
        assert not re.search(r'(?:^|\n\n)```\n(?!\n)', (ROOT / page).read_text()), page
    assert len(every) > 100


def test_what_is_named_exists() -> None:
    """Files of the repository, and tests by their name."""
    tests = ''.join(path.read_text() for path in (ROOT / 'tests').rglob('test_*.py'))
    for page in pages():
        if page in PAST:
            continue
        text = (ROOT / page).read_text()
        for path in re.findall(rf'`((?:{FOLDERS})/[\w./-]+)`', text):
            assert (ROOT / path).exists(), f'{page}: {path}'
        for name in re.findall(r'`(test_\w+)`', text):
            assert f'def {name}(' in tests, f'{page}: {name}'


@pytest.mark.usefixtures('stac')
@pytest.mark.parametrize('page', [p for p in of('python') if p not in ELSEWHERE])
def test_python(page: str, reader: Path) -> None:
    for module in NEEDED.get(page, ()):
        pytest.importorskip(module)
    if page == 'docs/models.md':
        (reader / 'encoder.pth').unlink()
        (reader / 'encoder.pth').symlink_to(reader / 's2mae.pth')
    namespace: dict[str, Any] = GIVEN.get(page, dict)()
    for block in blocks(page):
        if block.language != 'python':
            continue
        code = block.text
        if 'terratorch' in code and not importlib.util.find_spec('terratorch'):
            # It fits no TorchGeo of this environment: models/test_terratorch.py.
            continue
        for cut in ('batch_size=4', 'folds=2', 'repeats=1'):
            code = re.sub(rf'\b{cut[:-1]}\d+', cut, code)
        code = code.replace('vit_small', 'vit_tiny').replace('KFold(5', 'KFold(2')
        with warnings.catch_warnings():
            # TorchGeo's older names, which the pages use where they work everywhere.
            warnings.simplefilter('ignore')
            exec(
                compile('\n' * (block.line - 1) + code, ROOT / page, 'exec'), namespace
            )


@pytest.mark.parametrize('page', of('bash', 'console'))
def test_commands(page: str, reader: Path) -> None:
    for block in blocks(page):
        if block.language in {'bash', 'console'}:
            for command in commands(block, reader, KNOWN):
                # What stands on several pages is run once.
                if tuple(command) not in _DONE:
                    carry_out(block, command)
                    _DONE.add(tuple(command))


def carry_out(block: Block, command: list[str]) -> None:
    program, *rest = command
    match program:
        case 'torchgeo-sigmae':
            ours(block, rest)
        case 'python' if rest[:1] == ['-m'] and len(rest) == 2:
            # Named in a sentence, where what it needs may be left out.
            assert importlib.util.find_spec(rest[1]) is not None, block
        case 'python':
            parse(command)
        case 'make':
            made = subprocess.run(
                ['make', '--dry-run', f'PYTHON={sys.executable}', *rest],
                cwd=ROOT, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert made.returncode == 0, f'{block}: {made.stderr}'
        case 'pip':
            extras_exist(block, rest)
        case 'pytest' | 'jupyter' | 'nox':
            # What is named by its path exists.
            paths = [word for word in rest if '/' in word]
            assert all((ROOT / path).exists() for path in paths), block
        case _:
            pytest.fail(f'{block}: {program} is not known to this test')


def ours(block: Block, arguments: list[str]) -> None:
    """Run our command line; make, but do not train, what is to be fitted."""
    assert arguments, block
    name, *rest = arguments
    if ' '.join(arguments[:2]) in COMMANDS:
        name, rest = ' '.join(arguments[:2]), arguments[2:]
    if name == 'fit':
        made = SIGMAECLI([*rest, '--trainer.accelerator=cpu'], run=False)
        assert made.model is not None
        assert made.datamodule is not None
    elif name == 'demo' or '--folds' in rest:
        Parser(name, COMMANDS[name]).parse_args(rest)
    elif rest or name == '--version':
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            main(arguments)
    else:
        # Named in a sentence: it exists.
        with pytest.raises(SystemExit) as exit_:
            main([*name.split(), '--help'])
        assert exit_.value.code == 0


def extras_exist(block: Block, arguments: list[str]) -> None:
    config = ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert arguments[0] == 'install', block
    for extra in re.findall(r'\[(.*?)\]', ' '.join(arguments)):
        for name in extra.split(','):
            assert name in config['options.extras_require'], f'{block}: no {name}'


@pytest.mark.parametrize('page', of('yaml'))
def test_configurations(page: str) -> None:
    for block in blocks(page):
        if block.language == 'yaml':
            check_classes(block, yaml.safe_load(block.text))


def check_classes(block: Block, node: Any) -> None:
    """Every class of a configuration exists and takes the arguments."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict | list):
            check_classes(block, value)
    if isinstance(node, dict) and 'class_path' in node:
        module, _, name = node['class_path'].rpartition('.')
        known = inspect.signature(getattr(importlib.import_module(module), name))
        taken = set(known.parameters)
        if 'args' not in taken:
            assert set(node.get('init_args', {})) <= taken, block


def test_a_wrong_argument_is_found() -> None:
    with pytest.raises(AssertionError, match='refuses this'):
        parse(['python', '-m', 'benchmarks.scaling', '--no-such-argument'])
    block = Block('page', 1, 'yaml', '')
    wrong = {'class_path': 'torchgeo_sigmae.FineTuning', 'init_args': {'no_such': 1}}
    with pytest.raises(AssertionError):
        check_classes(block, {'trainer': {'callbacks': [wrong]}})
    with pytest.raises(AssertionError):
        carry_out(block, ['make', 'no-such-target'])
    with pytest.raises(AssertionError):
        carry_out(block, ['pip', 'install', '.[no-such-extra]'])
