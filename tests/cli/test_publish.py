# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``publish`` before it uploads; tests/weights/test_folder.py uploads."""

import socket
from pathlib import Path

import pytest

from helpers.training import small_task
from torchgeo_sigmae.cli import main


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError('a dry run needs no network')

    monkeypatch.setattr(socket.socket, 'connect', refuse)


def test_a_dry_run_lists_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'encoder'
    small_task().export(folder)
    (folder / 'last.ckpt').write_text('x')
    main(['publish', str(folder), 'me/encoder', '--dry-run'])
    *files, last = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[0]).name for line in files] == [
        *('config.json', 'model.safetensors', 'README.md')
    ]
    size = (folder / 'model.safetensors').stat().st_size / 1e6
    assert files[1].endswith(f'{size:.3f} MB')
    assert last == 'Not uploaded to me/encoder: --dry-run.'


def test_only_exports_are_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(['publish', str(tmp_path), 'me/encoder'])
    assert 'holds no config.json' in capsys.readouterr().err
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(SystemExit):
        main(['publish', str(tmp_path), 'me/encoder'])
    assert 'is not an exported folder' in capsys.readouterr().err
