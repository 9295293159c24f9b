# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The wheel, installed elsewhere: the weights load and classify, without a network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.distributions import built_wheel, source_distribution
from helpers.distributions import run as run_command

ROOT = Path(__file__).parents[1]

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


def readme_lines() -> str:
    """The code of README's section on the weights."""
    section = (ROOT / 'README.md').read_text().split('## Pretrained weights\n')[1]
    (code,) = re.findall(r'```python\n(.*?)```', section.split('\n## ')[0], re.DOTALL)
    return code


@pytest.fixture(scope='module')
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the wheel was installed into, built from the source distribution."""
    path = tmp_path_factory.mktemp('wheel')
    wheel = built_wheel(source_distribution(path), path)
    pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
    run_command(
        [*pip, 'install', '--no-deps', '--no-index', '--target', path / 'site', wheel]
    )
    return path / 'site'


def run(code: str, site: Path, elsewhere: Path) -> subprocess.CompletedProcess[str]:
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


def test_the_wheel_is_small(installed: Path) -> None:
    (wheel,) = installed.parent.glob('*.whl')
    assert wheel.stat().st_size < 20e6


def test_readmes_lines_load_the_weights_and_classify(
    installed: Path, tmp_path: Path
) -> None:
    code = readme_lines()
    for word in ('SIGMAE_Weights.SENTINEL2', 'ClassificationTask', '.transforms('):
        assert word in code
    done = run(f'{code}\nprint(tuple(scores.shape))', installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '(1, 10)'


def test_a_corrupted_file_is_refused(installed: Path, tmp_path: Path) -> None:
    site = tmp_path / 'site'
    shutil.copytree(installed, site)
    (file,) = site.glob('torchgeo_sigmae/weights/*_sentinel2-*.pth')
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = run(readme_lines(), site, tmp_path)
    assert done.returncode != 0
    assert 'is damaged or was altered' in done.stderr
    assert 'pip install --force-reinstall' in done.stderr
