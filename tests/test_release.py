# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What a release must be: one version, distributions that PyPI takes and that work.

The wheel is installed elsewhere, and used without a network.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from torchgeo_sigmae._version import __version__

ROOT = Path(__file__).parents[1]

#: What may lie in a checkout and has no place in a distribution.
LEFT_OUT = shutil.ignore_patterns(
    '.git', '.nox', '.venv*', '__pycache__', '*.egg-info', '_build', 'generated',
    'outputs', 'build', 'dist', '.*_cache', '.hypothesis', 'lightning_logs',
)  # fmt: skip

PIP = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']

#: Runs what it is given as a user without a network would, from the wheel.
LONELY = """
import socket, sys, warnings

def refuse(*args, **kwargs):
    raise OSError('There is no network here.')

socket.socket.connect = socket.getaddrinfo = refuse
sys.path.insert(0, sys.argv[1])
# Older names of TorchGeo warn in the newer ones.
warnings.simplefilter('ignore')
import torchgeo_sigmae
assert torchgeo_sigmae.__file__.startswith(sys.argv[1]), torchgeo_sigmae.__file__
exec(sys.stdin.read())
"""


def run(command: list[object], cwd: Path | None = None) -> None:
    """Run a command, and show its output if it fails."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope='module')
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution of a copy of the checkout."""
    folder = tmp_path_factory.mktemp('release')
    shutil.copytree(ROOT, folder / 'sources', ignore=LEFT_OUT)
    code = f'from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})'
    run([sys.executable, '-c', code], folder / 'sources')
    (path,) = folder.glob('*.tar.gz')
    return path


@pytest.fixture(scope='module')
def wheel(sdist: Path) -> Path:
    """A wheel built from the source distribution."""
    folder = sdist.parent
    run([*PIP, 'wheel', '--no-deps', '--no-build-isolation', '-w', folder, sdist])
    (path,) = folder.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def installed(wheel: Path) -> Path:
    """A folder that the wheel was installed into."""
    site = wheel.parent / 'site'
    run([*PIP, 'install', '--no-deps', '--no-index', '--target', site, wheel])
    return site


def readme_lines() -> str:
    """The code of README's section on the weights."""
    section = (ROOT / 'README.md').read_text().split('## Pretrained weights\n')[1]
    (code,) = re.findall(r'```python\n(.*?)```', section.split('\n## ')[0], re.DOTALL)
    return code


def run_wheel(
    code: str, site: Path, elsewhere: Path
) -> subprocess.CompletedProcess[str]:
    """Run code with the wheel, from another folder, by a user with no home."""
    env = {
        'PATH': os.defpath,
        # Below a file, nothing can be written, whoever tries.
        'HOME': '/dev/null/home',
        'MPLCONFIGDIR': str(elsewhere),
        'OMP_NUM_THREADS': '1',
    }
    return subprocess.run(
        [sys.executable, '-c', LONELY, str(site)], input=code, cwd=elsewhere, env=env,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


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


def test_the_wheel_is_small_and_has_weights_and_types(wheel: Path) -> None:
    assert wheel.stat().st_size < 20e6
    names = set(zipfile.ZipFile(wheel).namelist())
    assert 'torchgeo_sigmae/py.typed' in names
    assert any(re.search(r'weights/.*sentinel2-[0-9a-f]{8}\.pth$', n) for n in names)
    assert 'torchgeo_sigmae/plotting/view.html' in names
    ours = {
        str(path.relative_to(ROOT)) for path in ROOT.glob('torchgeo_sigmae/**/*.py')
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


def test_readmes_lines_load_the_weights_and_classify(
    installed: Path, tmp_path: Path
) -> None:
    code = readme_lines()
    for word in ('SIGMAE_Weights.SENTINEL2', 'ClassificationTask', '.transforms('):
        assert word in code
    done = run_wheel(f'{code}\nprint(tuple(scores.shape))', installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '(1, 10)'
