# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From a folder of one's own GeoTIFFs to a classifier, by the example script."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torchgeo.datasets import NonGeoClassificationDataset

from helpers.geotiffs import write
from torchgeo_sigmae.bands import SENTINEL2_L2A_BANDS, SENTINEL2_TEN_BANDS
from torchgeo_sigmae.weights import read_weights

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'examples' / 'classify_own_geotiffs.py'
PAGE = ROOT / 'docs' / 'own_classifier.md'

#: Digital numbers of two kinds of ground in the twelve bands of Level-2A.
GROUND = {
    'Field': (900, 1000, 1300, 1500, 1800, 2300, 2500, 2600, 2700, 2700, 3200, 2400),
    'Forest': (300, 250, 450, 250, 700, 2200, 2800, 2900, 3100, 3100, 1500, 650),
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module(SCRIPT.stem)


def chips(
    root: Path,
    bands: tuple[str, ...] = SENTINEL2_L2A_BANDS,
    named: bool = True,
    factor: float = 1,
    count: int = 10,
    side: int = 16,
) -> Path:
    """Chips of two classes, bands in any order; Forest is a pixel larger or smaller."""
    rng = np.random.default_rng(0)
    for kind, (name, ground) in enumerate(GROUND.items()):
        values = [ground[SENTINEL2_L2A_BANDS.index(band)] for band in bands]
        for index in range(count):
            shape = (len(bands), side - kind, side + kind)
            noise = rng.normal(1, 0.1, shape)
            array = np.array(values)[:, None, None] * noise * factor
            array = array.astype('uint16' if factor == 1 else 'float32')
            write(root / name / f'{index}.tif', array, bands if named else None)
    (root / 'Forest' / 'readme.txt').write_text('no chip')
    return root


# The page writes for readers of every version.
@pytest.mark.filterwarnings('ignore:.*ClassificationTask')
def test_a_newcomer_gets_a_classifier_and_can_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As a shell would, from another folder, with the page's own command.
    root = chips(tmp_path / 'my_data', SENTINEL2_L2A_BANDS[::-1])
    (command,) = re.findall(
        r'^python examples/(classify.* my_data .*)$', PAGE.read_text(), re.M
    )
    assert f'python examples/{command}\n' in (ROOT / 'README.md').read_text()
    name, *options = command.split()
    environment = {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    said = subprocess.run(
        [
            sys.executable,
            f'{ROOT}/examples/{name}',
            *options,
            '--epochs=5',
            '--batch-size=6',
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    ).stdout
    # The numbers that chance and training do not change.
    assert '20 chips of 2 classes, 24 px, bands B02 B03' in said
    assert '12 train, 4 val, 4 test' in said
    assert re.search(r'^Forest +2 +100% ', said, re.M)
    assert '100% of 4 unseen chips; always the same: 50%.' in said
    output = tmp_path / 'outputs' / 'my_classifier'
    stored = json.loads((output / 'classifier.json').read_text())
    assert stored['classes'] == ['Field', 'Forest']
    assert stored['bands'] == list(SENTINEL2_TEN_BANDS)
    assert stored['test_accuracy'] == 1
    # What the page says about using it.
    (snippet,) = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(snippet.replace('new.tif', str(root / 'Forest' / '3.tif')), {})
    predicted = re.fullmatch(r'Forest (\d+)%\n', capsys.readouterr().out)
    assert predicted
    assert int(predicted[1]) > 50


def test_reflectance_of_four_unnamed_bands(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bands = ('B08', 'B04', 'B03', 'B02')
    root = chips(tmp_path / 'data', bands, named=False, factor=1e-4)
    with pytest.raises(SystemExit, match=r'its 4 bands .* Name all of them in order'):
        script.main(root, tmp_path / 'out', epochs=1)
    with pytest.raises(SystemExit, match='Pass --scale 10000 if'):
        script.main(root, tmp_path / 'out', bands, epochs=1)
    accuracy = script.main(root, tmp_path / 'out', bands, 1e4, epochs=4, batch_size=6)
    assert accuracy == 1
    assert 'bands B02 B03 B04 B08' in capsys.readouterr().out
    hparams = read_weights(tmp_path / 'out' / 'encoder.pth').info
    assert hparams['bands'] == ['B02', 'B03', 'B04', 'B08']
    stored = json.loads((tmp_path / 'out' / 'classifier.json').read_text())
    # In the units of the files.
    assert stored['mean'] == pytest.approx([m / 1e4 for m in hparams['mean']])


def test_chips_are_read_by_band_and_cropped(script: ModuleType, tmp_path: Path) -> None:
    rows = np.arange(24).reshape(1, 24, 1)
    array = np.concatenate([rows + 100 * band for band in (1, 2)]).repeat(10, 2)
    path = str(write(tmp_path / 'a.tif', array.astype('uint16'), ('B08', 'B04')))
    chip = script.read_chip(path, ('B04', 'B08'), None, 16)
    assert chip.shape == (16, 16, 2)
    # The middle 16 of 24 rows; 10 columns and padding.
    assert chip[:, 0].tolist() == [[204 + i, 104 + i] for i in range(16)]
    assert np.isnan(chip[:, 10:]).all()
    assert np.isfinite(chip[:, :10]).all()


def test_augmentation_moves_pixels_and_makes_none(script: ModuleType) -> None:
    image = torch.arange(2 * 4 * 4.0).view(2, 4, 4)
    image[:, 0, 0] = torch.nan
    mean, std = torch.ones(2, 1, 1), torch.full((2, 1, 1), 2.0)
    sample = {'image': image, 'label': torch.tensor(1)}
    plain = script.prepare(sample, mean, std, random=False)
    assert torch.equal(plain['image'], ((image - 1) / 2).nan_to_num(0))
    seen = set()
    for _ in range(100):
        moved = script.prepare(sample, mean, std, random=True)
        assert moved['label'] == 1
        assert torch.equal(
            moved['image'].flatten(1).sort().values,
            plain['image'].flatten(1).sort().values,
        )
        seen.add(tuple(moved['image'].flatten().tolist()))
    assert len(seen) == 8


def test_the_split_is_stratified_and_repeatable(script: ModuleType) -> None:
    labels = [0] * 3 + [1] * 10 + [2] * 100
    parts = script.split(labels, 0)
    assert sorted(i for part in parts.values() for i in part) == list(range(113))
    counts = {
        name: np.bincount([labels[i] for i in part]).tolist()
        for name, part in parts.items()
    }
    assert counts == {'train': [1, 6, 60], 'val': [1, 2, 20], 'test': [1, 2, 20]}
    assert script.split(labels, 0) == parts
    assert script.split(labels, 1) != parts


def test_folders_that_cannot_be_used(script: ModuleType, tmp_path: Path) -> None:
    root = chips(tmp_path / 'few', count=2)
    with pytest.raises(SystemExit, match='Field, Forest: fewer than 3 chips'):
        script.look_at(root, None)
    write(root / 'Field' / '2.tif', np.ones((2, 8, 8), 'uint16'), ('B02', 'mask'))
    write(root / 'Forest' / '2.tif', np.ones((2, 8, 8), 'uint16'), ('B02', 'mask'))
    with pytest.raises(ValueError, match=r'2\.tif has the bands .* not found'):
        script.look_at(root, None)
    root = chips(tmp_path / 'large', bands=('B02',), count=3, side=520)
    with pytest.raises(SystemExit, match='521 px is no chip'):
        script.look_at(root, None)


def test_eurosat_is_such_a_folder(
    script: ModuleType, eurosat_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = next(eurosat_root.rglob('Forest')).parent
    names = [*SENTINEL2_L2A_BANDS[:8], 'B09', 'B10', 'B11', 'B12', 'B8A']
    contents = script.look_at(root, names)
    assert len(contents['classes']) == 10
    assert contents['bands'] == list(SENTINEL2_TEN_BANDS)
    assert (contents['size'], len(contents['labels'])) == (64, 200)
    chips = NonGeoClassificationDataset(
        str(root),
        loader=lambda path: script.read_chip(path, contents['bands'], names, 64),
        is_valid_file=script.is_geotiff,
    )
    # 20 chips of each class, one after the other.
    chosen = torch.utils.data.Subset(chips, range(0, 200, 20))
    share = script.report(_Always(3), chosen, contents['classes'])
    assert share == pytest.approx(0.1)
    said = capsys.readouterr().out
    assert re.search(r'^Highway +1 +100%  -$', said, re.M)
    assert re.search(r'^Forest +1 +0%  Highway$', said, re.M)


class _Always(torch.nn.Module):
    """Says the same of every image."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([self.label]), 10).float()
