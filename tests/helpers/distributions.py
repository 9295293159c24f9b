# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Distributions as a release has them, made without a network."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

#: What may lie in a checkout and has no place in a distribution.
LEFT_OUT = shutil.ignore_patterns(
    '.git', '.nox', '.venv*', '__pycache__', '*.egg-info', '_build', 'generated',
    'outputs', 'build', 'dist', '.*_cache', '.hypothesis', 'lightning_logs',
)  # fmt: skip


def run(command: list[Any], cwd: Path | None = None) -> None:
    """Run a command, and show what it said if it fails."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def source_distribution(folder: Path) -> Path:
    """Build a source distribution from a copy of the checkout."""
    sources = folder / 'sources'
    shutil.copytree(ROOT, sources, ignore=LEFT_OUT)
    code = f'from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})'
    run([sys.executable, '-c', code], cwd=sources)
    (path,) = folder.glob('*.tar.gz')
    return path


def built_wheel(source: Path, folder: Path) -> Path:
    """Build a wheel from a source distribution or a folder."""
    run([sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check', 'wheel',
         '--no-deps', '--no-build-isolation', '-w', folder, source])  # fmt: skip
    (path,) = folder.glob('*.whl')
    return path
