# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The examples that come with the package."""

from pathlib import Path

import pytest
import yaml

from torchgeo_sigmae.__main__ import main
from torchgeo_sigmae.example_files import copy_examples, list_examples

EXAMPLES = Path(__file__).parents[1] / 'examples'


def test_all_are_listed_with_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        path.relative_to(EXAMPLES).as_posix()
        for path in EXAMPLES.rglob('*')
        if path.suffix in {'.py', '.yaml'}
    }
    known = list_examples()
    assert set(known) == files
    assert all(len(what) > 20 for what in known.values())
    main(['examples'])
    printed = capsys.readouterr().out
    assert all(name in printed for name in files)


def test_copies_are_complete(tmp_path: Path) -> None:
    main(['examples', 'pretrain_eurosat', 'barkbeetle.py', '-o', str(tmp_path / 'new')])
    (config, script) = sorted(tmp_path.rglob('*.*'), key=lambda path: path.suffix)[::-1]
    assert config.read_bytes() == (EXAMPLES / 'pretrain_eurosat.yaml').read_bytes()
    assert 'model' in yaml.safe_load(config.read_text())
    assert script.read_bytes() == (EXAMPLES / 'barkbeetle.py').read_bytes()


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / 'pretrain_oscd.yaml').write_text('mine')
    with pytest.raises(FileExistsError, match=r'pretrain_oscd\.yaml exists already'):
        copy_examples(['pretrain_eurosat', 'pretrain_oscd.yaml'], tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['mine']


def test_unknown_names_are_answered_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match=r"'pretrain_mars'.*pretrain_eurosat\.yaml"):
        copy_examples(['pretrain_mars'])
    with pytest.raises(SystemExit):
        main(['examples', '../setup.cfg'])
    assert 'No example' in capsys.readouterr().err
