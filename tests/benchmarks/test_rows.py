# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Rows of long benchmarks, which are kept to go on after an interruption."""

from pathlib import Path

import pytest

from benchmarks.rows import finished_row
from helpers.faults import file_size_limit


@pytest.mark.parametrize('text', ['', '{', '[]', '{"asked": {"seed": 0}}', 'null'])
def test_damaged_rows_are_measured_again(text: str, tmp_path: Path) -> None:
    path = tmp_path / 'row.json'
    path.write_text(text)
    for before in (False, True):
        row = finished_row(path, {'seed': 0}, lambda: {'loss': 0.5})
        assert row == ({'loss': 0.5}, before)


def test_rows_of_other_options_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / 'row.json'
    for steps, before in ((1, False), (2, False), (2, True), (1, False)):
        row = finished_row(path, {'steps': steps}, lambda: {'loss': 0.5})
        assert row == ({'loss': 0.5}, before)


def test_a_full_disk_leaves_the_old_row(tmp_path: Path) -> None:
    path = tmp_path / 'row.json'
    path.write_text('before')
    with file_size_limit(20), pytest.raises(OSError, match=r'row\.json'):
        finished_row(path, {'seed': 0}, lambda: {'loss': 0.5})
    assert [path.read_text() for path in tmp_path.iterdir()] == ['before']
