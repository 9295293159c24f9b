# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Shared fixtures, and an honest count of what ran on real data."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

from torchgeo_sigmae.datasets import SyntheticSentinel2, SyntheticSentinel2DataModule

mpl.use('Agg')

_DATA = Path(
    os.environ.get('SIGMAE_DATA', Path(__file__).parents[1].parent / 'shared' / 'data')
)


@pytest.fixture(scope='session')
def real_data() -> Callable[[str], Path]:
    """Find a folder of the real data; whoever asks for it is counted."""
    return _find


def _find(folder: str) -> Path:
    path = _DATA / folder
    if not path.is_dir():
        reason = f'no real data at {path}; set SIGMAE_DATA to the folder that holds it'
        if os.environ.get('SIGMAE_REQUIRE_DATA') == '1':
            pytest.fail(f'SIGMAE_REQUIRE_DATA=1, but {reason}')
        pytest.skip(reason)
    return path


@pytest.fixture(scope='session')
def eurosat_root(real_data: Callable[[str], Path]) -> Path:
    return real_data('eurosat')


@pytest.fixture(scope='session')
def bigearthnet_root(real_data: Callable[[str], Path]) -> Path:
    return real_data('bigearthnet')


@pytest.fixture(scope='session')
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real GeoTIFFs of the embedded default, generated once per session."""
    root = tmp_path_factory.mktemp('synthetic')
    for split in ('train', 'val', 'test'):
        SyntheticSentinel2(root, split)
    return root


@pytest.fixture
def synthetic(synthetic_root: Path) -> SyntheticSentinel2DataModule:
    return SyntheticSentinel2DataModule(root=synthetic_root, batch_size=32)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for real data."""
    for item in items:
        if 'real_data' in getattr(item, 'fixturenames', ()):
            item.add_marker('real_data')


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> None:
    """Say how much ran on real data, and on what."""
    counts = {
        outcome: sum(
            'real_data' in report.keywords
            for report in terminalreporter.stats.get(outcome, [])
            if report.when == 'call' or outcome in ('skipped', 'error')
        )
        for outcome in ('passed', 'failed', 'error', 'skipped')
    }
    ran = counts['passed'] + counts['failed']
    terminalreporter.section('environment')
    terminalreporter.line(
        f'real-data tests: {ran} ran, {counts["skipped"]} skipped, '
        f'{counts["error"]} could not start (data: {_DATA})'
    )
    packages = ('torchgeo', 'torch', 'lightning', 'kornia', 'timm')
    versions = ', '.join(f'{name} {version(name)}' for name in packages)
    terminalreporter.line(f'Python {platform.python_version()}, {versions}')
