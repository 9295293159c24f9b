# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The command line, the example configurations and the demo."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import torchgeo_sigmae
from helpers.geotiffs import write
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.cli import COMMANDS, TRAINER_COMMANDS, main
from torchgeo_sigmae.evaluation.baseline import POOLS
from torchgeo_sigmae.evaluation.probes import PROBES
from torchgeo_sigmae.transforms import DEFAULT_INDICES
from torchgeo_sigmae.weights import read_weights
from torchgeo_sigmae.weights.matching import METHODS

EXAMPLES = Path(__file__).parents[2] / 'examples'
FAST = [
    '--trainer.max_epochs=1',
    '--trainer.limit_train_batches=2',
    '--trainer.check_val_every_n_epoch=1',
    '--trainer.accelerator=cpu',
    '--trainer.enable_progress_bar=false',
    '--trainer.enable_model_summary=false',
]


def test_pretraining_from_the_example_config(
    eurosat_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        [
            'fit',
            f'--config={EXAMPLES / "pretrain_eurosat.yaml"}',
            f'--data.dict_kwargs.root={eurosat_root}',
            f'--trainer.default_root_dir={tmp_path}',
            *FAST,
        ]
    )
    (checkpoint,) = tmp_path.rglob('*.ckpt')
    picture = tmp_path / 'a folder' / 'picture.png'
    script = EXAMPLES / 'reconstruct_eurosat.py'
    arguments = map(str, (script, checkpoint, eurosat_root, picture))
    subprocess.run([sys.executable, *arguments], check=True)
    assert picture.read_bytes()[:4] == b'\x89PNG'
    hparams = read_weights(checkpoint).info
    assert hparams['bands'] == list(torchgeo_sigmae.bands.SENTINEL2_TEN_BANDS)


def test_finetuning_from_the_example_config(
    eurosat_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = torchgeo_sigmae.SIGMAETask(
        model='sigmae_vit_tiny_patch8',
        size=64,
        batch=torchgeo_sigmae.BatchSpec(mean=1000.0, std=500.0),
    )
    task.export(tmp_path / 'encoder.pth')
    main(
        [
            'fit',
            f'--config={EXAMPLES / "classify_eurosat.yaml"}',
            f'--data.dict_kwargs.root={eurosat_root}',
            f'--model.init_args.weights={tmp_path / "encoder.pth"}',
            f'--trainer.default_root_dir={tmp_path}',
            *FAST,
        ]
    )
    assert list(tmp_path.rglob('*.ckpt'))


def test_demo_on_scenes_of_ones_own(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    main(
        [
            'demo',
            f'--data={real_data("scenes")}',
            f'--output={tmp_path / "own"}',
            '--steps=2',
        ]
    )
    pictures = {path.name for path in (tmp_path / 'own').glob('*.png')}
    assert pictures == {
        *('reconstruction.png', 'indices.png', 'saliency.png', 'mask.png'),
        'curves.png',
    }


def test_demo_on_one_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for side, steps in ((300, 1), (100, 0)):
        array = rng.integers(500, 3000, (10, side, side)).astype('uint16')
        root = tmp_path / str(side)
        write(root / 'one.tif', array, SENTINEL2_TEN_BANDS)
        command = ['demo', f'--data={root}', f'--output={root}/out', '--steps=1']
        if steps:
            main(command)
            assert (root / 'out' / 'encoder.pth').exists()
            continue
        with pytest.raises(SystemExit):
            main(command)
        error = capsys.readouterr().err
        assert 'data: the scenes under' in error
        assert 'val_fraction' not in error


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(['demo', '--output', str(tmp_path / 'demo'), '--steps', '4'])
    picture = tmp_path / 'demo' / 'reconstruction.png'
    assert picture.read_bytes()[:4] == b'\x89PNG'
    torch.load(tmp_path / 'demo' / 'last.ckpt', weights_only=True)
    assert read_weights(tmp_path / 'demo' / 'encoder.pth').info['model']
    out = capsys.readouterr().out
    assert 'Validation loss before' in out
    assert 'TorchGeo' in out


def test_version_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    main(['--version'])
    out = capsys.readouterr().out
    assert out.startswith(f'torchgeo-sigmae {torchgeo_sigmae.__version__}, TorchGeo ')


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.parametrize('option', ['--help', '--version'])
def test_help_waits_for_nothing_slow(option: str) -> None:
    run = shell('-X', 'importtime', '-m', 'torchgeo_sigmae', option)
    assert not re.search(r'\| +(torch|torchgeo|lightning|rasterio)$', run.stderr, re.M)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(['--help'])
    lines = capsys.readouterr().out.splitlines()
    for name in (*TRAINER_COMMANDS, *COMMANDS):
        (line,) = [line for line in lines if line.startswith(f'  {name}  ')]
        assert line.endswith('.')
    main(['map', '--help'])
    assert capsys.readouterr().out.count('  map ') == 5


@pytest.mark.parametrize('name', [*TRAINER_COMMANDS, *COMMANDS])
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), '--help'])
    assert stop.value.code == 0
    assert 'options:' in capsys.readouterr().out.lower()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('', 'no command.'),
        ('fitt', "no command 'fitt'. Did you mean 'fit'?"),
        ('saliency x.tif', "Did you mean 'map saliency'?"),
        ('map embeddings', "Did you mean 'map embedding'?"),
        ('map', "no command 'map'."),
        ('--verison', "Did you mean '--version'?"),
        ('map saliency x.tif -o y.tif --indice NDVI', "Did you mean '--indices'?"),
        ('demo --step 3', "no option '--step'. Did you mean '--steps'?"),
        ('demo --steps many', '--steps: Expected a int. Got value: many'),
        ('map saliency x.tif', '--output must be given.'),
        ('map saliency x.tif -o y.tif --combine sum', '--combine: '),
    ],
)
def test_mistakes_take_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('torchgeo-sigmae')
    assert message in line


def test_choices_are_those_of_the_package() -> None:
    def choices(name: str, parameter: str) -> tuple[str, ...]:
        annotation = inspect.signature(COMMANDS[name]).parameters[parameter].annotation
        return get_args(annotation) or ()

    assert choices('adapt-bands', 'method') == METHODS
    assert choices('evaluate features', 'pooling') == POOLS
    assert get_args(choices('evaluate features', 'probes')[0]) == tuple(PROBES)
    indices = inspect.signature(COMMANDS['map saliency']).parameters['indices']
    assert indices.default == DEFAULT_INDICES


def test_names_are_imported_when_a_command_needs_them() -> None:
    code = (
        'import sys; sys.argv = ["torchgeo-sigmae"]\n'
        'import torchgeo_sigmae\n'
        'assert "torch" not in sys.modules\n'
        'for name in torchgeo_sigmae.__all__:\n'
        '    getattr(torchgeo_sigmae, name)\n'
        'assert not hasattr(torchgeo_sigmae, "nothing")\n'
    )
    shell('-c', code)


def test_console_script_is_the_module() -> None:
    (script,) = entry_points(group='console_scripts', name='torchgeo-sigmae')
    assert script.load() is main


def test_import_is_quiet_and_complete() -> None:
    """Importing gives no warning of ours, and every public name is there."""
    code = (
        'import warnings\n'
        'with warnings.catch_warnings(record=True) as seen:\n'
        '    warnings.simplefilter("always")\n'
        '    import torchgeo_sigmae\n'
        'ours = [w for w in seen if "torchgeo_sigmae" in str(w.filename)]\n'
        'assert not ours, ours\n'
        'for name in torchgeo_sigmae.__all__:\n'
        '    getattr(torchgeo_sigmae, name)\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
    assert sorted(torchgeo_sigmae.__all__) == list(torchgeo_sigmae.__all__)


def test_the_readmes_ten_lines(
    eurosat_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as printed, on what is here: fewer chips, and an epoch of two batches."""
    readme = (EXAMPLES.parent / 'README.md').read_text()
    code = readme.split('```python\n')[1].split('```')[0]
    for printed, here in (
        ("'data/eurosat'", repr(str(eurosat_root))),
        ('batch_size=256', 'batch_size=16'),
        ('max_epochs=200', 'max_epochs=1, limit_train_batches=2, logger=False'),
        ('small', 'tiny'),
    ):
        assert printed in code, printed
        code = code.replace(printed, here)
    monkeypatch.chdir(tmp_path)
    # The newest TorchGeo warns that ClassificationTask has a new name.
    script = 'import warnings; warnings.simplefilter("ignore")\n' + code
    subprocess.run([sys.executable, '-c', script], check=True, timeout=300)
    assert read_weights(tmp_path / 'encoder.pth').info['size'] == 64
