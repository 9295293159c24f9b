# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What a release must be: one version, complete distributions that PyPI would take."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from helpers.distributions import built_wheel, source_distribution
from torchgeo_sigmae._version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_distribution(tmp_path_factory.mktemp('release'))


@pytest.fixture(scope='module')
def wheel(sdist: Path) -> Path:
    return built_wheel(sdist, sdist.parent)


def test_there_is_one_version() -> None:
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == __version__
    newest = re.search(r'^## (\S+) (.+)$', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    assert newest is not None
    assert newest[1] == __version__.split('.dev')[0]
    assert (newest[2] == '(unreleased)') == ('.dev' in __version__)


def test_both_papers_are_cited() -> None:
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    titles = ' '.join(reference['title'] for reference in citation['references'])
    assert 'SIGMAE' in titles
    assert 'S2MAE' in titles


def test_pypi_would_take_them(sdist: Path, wheel: Path) -> None:
    command = [sys.executable, '-m', 'twine', 'check', '--strict', sdist, wheel]
    # Plain text, whatever the terminal.
    env = {**os.environ, 'NO_COLOR': '1', 'TERM': 'dumb'}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('PASSED') == 2


def test_the_wheel_has_weights_examples_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert 'torchgeo_sigmae/py.typed' in names
    assert any(re.search(r'weights/.*sentinel2-[0-9a-f]{8}\.pth$', n) for n in names)
    for path in [*ROOT.glob('examples/**/*.yaml'), *ROOT.glob('examples/**/*.py')]:
        assert f'torchgeo_sigmae/{path.relative_to(ROOT)}' in names
    ours = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob('torchgeo_sigmae/**/*.py')
        if 'examples' not in path.parts
    }
    assert ours <= names
    # And nothing else at the top: no tests, benchmarks or docs.
    assert {name.split('/')[0] for name in names} == {
        'torchgeo_sigmae', f'torchgeo_sigmae-{__version__}.dist-info',
    }  # fmt: skip


def test_the_source_has_all_that_make_test_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    for name in ('Makefile', '.ci/run', 'CHANGELOG.md', 'CITATION.cff', 'LICENSE',
                 'tests/conftest.py', 'tests/conf/resume.yaml', 'docs/conf.py',
                 'benchmarks/measure.py', 'noxfile.py'):  # fmt: skip
        assert name in names, name
    assert not [name for name in names if '__pycache__' in name]
