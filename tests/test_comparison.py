# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Every cell of the comparison, dry: one batch, and no weights from the network."""

import importlib.util
from pathlib import Path

import pytest
import timm

from helpers.training import small_task
from torchgeo_sigmae.bands import SENTINEL2_L2A_BANDS
from torchgeo_sigmae.cli import main

CELLS = Path(__file__).parents[1] / 'examples' / 'comparison'
OURS = ('sigmae', 's2mae', 'satmae')
DATASETS = ('eurosat', 'bigearthnet', 'oscd')
MODELS = ('resnet50-imagenet', 'resnet50-seco', 'vit-scratch', 'vit-imagenet', *OURS)


def export(family: str, path: Path) -> Path:
    """An encoder of ten bands, as SIGMAETask exports it."""
    small_task(
        model=f'{family}_vit_small_patch8', size=96, mean=1000.0, std=500.0
    ).export(path)
    return path


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ImageNet ViT as the script writes it, with random weights instead."""
    path = CELLS / 'imagenet_vit.py'
    spec = importlib.util.spec_from_file_location('imagenet_vit', path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    output = tmp_path_factory.mktemp('imagenet') / 'rgb.pth'
    create_model = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            timm,
            'create_model',
            lambda name, pretrained=False, **kw: create_model(name, **kw),
        )
        script.main(output)
    return output


def dry_run(path: Path, dataset: str, model: str, root: Path, weights: object) -> None:
    main(
        [
            'fit',
            f'--config={CELLS / f"{dataset}.yaml"}',
            f'--config={CELLS / f"{dataset}-{model}.yaml"}',
            f'--data.dict_kwargs.root={root}',
            f'--model.init_args.weights={"null" if weights is None else weights}',
            f'--trainer.default_root_dir={path}',
            # Not fast_dev_run: its logger seems to take figures, see oscd.yaml.
            '--trainer.max_steps=1',
            '--trainer.limit_val_batches=2',
            '--trainer.num_sanity_val_steps=0',
            '--trainer.enable_checkpointing=false',
            '--trainer.accelerator=cpu',
            '--trainer.precision=32',
            '--trainer.enable_progress_bar=false',
            '--trainer.enable_model_summary=false',
            '--data.init_args.num_workers=0',
            f'--data.init_args.batch_size={1 if dataset == "bigearthnet" else 2}',
            *(['--data.init_args.patch_size=64'] if dataset == 'oscd' else []),
        ]
    )


# What S2MAE's first layer cannot make up for, and no layer without the mean and std of
# all twelve bands of BigEarthNet.
@pytest.mark.filterwarnings('default:weights. .* normalizes differently')
@pytest.mark.filterwarnings('default:weights. .* expects bands with mean 0')
@pytest.mark.parametrize(
    ('dataset', 'model'),
    [
        ('eurosat', 'sigmae'),
        *(
            pytest.param(dataset, model, marks=pytest.mark.slow)
            for dataset in DATASETS
            for model in MODELS
            if (dataset, model) != ('eurosat', 'sigmae')
        ),
    ],
)
def test_every_cell(
    dataset: str,
    model: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    root = request.getfixturevalue(f'{dataset}_root')
    weights = None
    if model in OURS:
        weights = export(model, tmp_path / 'encoder.pth')
    elif model == 'vit-imagenet':
        weights = request.getfixturevalue('imagenet')
    if weights is not None and dataset == 'bigearthnet':
        # As the cells say: its twelve bands take an adapted file.
        source, weights = weights, tmp_path / 'twelve.pth'
        bands = ['--bands', *SENTINEL2_L2A_BANDS]
        main(['adapt-bands', str(source), '-o', str(weights), *bands])
    dry_run(tmp_path, dataset, model, root, weights)


def test_there_are_no_other_cells() -> None:
    expected = {f'{dataset}-{model}.yaml' for dataset in DATASETS for model in MODELS}
    assert {path.name for path in CELLS.glob('*-*.yaml')} == expected
