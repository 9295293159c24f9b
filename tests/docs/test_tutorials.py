# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The tutorials: their code runs, and what they show is what it showed.

Cells run in this process, one after the other as in a kernel, which saves six imports
of torch; ``docs/tutorials/execute.py`` runs them in a real one.
"""

import ast
import base64
import importlib
import io
import json
import linecache
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

TUTORIALS = Path(__file__).parents[2] / 'docs' / 'tutorials'
NOTEBOOKS = sorted(TUTORIALS.glob('*.ipynb'))
NAMES = [path.stem for path in NOTEBOOKS]

#: The least that shows that everything runs; a reader's run has more.
SHORT = {'EPOCHS': '1'}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in; what notebooks set for good is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TUTORIALS))
    for name, value in SHORT.items():
        monkeypatch.setenv(name, value)
    log = logging.getLogger('lightning.pytorch')
    level = log.level
    yield tmp_path
    log.setLevel(level)


def run(path: Path) -> list[Any]:
    """Run the code of a notebook; values of its last expressions, figures drawn."""
    names: dict[str, Any] = {'__name__': path.stem}
    shown = []
    for number, cell in enumerate(json.loads(path.read_text())['cells']):
        if cell['cell_type'] != 'code':
            continue
        source = re.sub(r'^%.*$', '', ''.join(cell['source']), flags=re.M)
        # For tracebacks, and for code that asks for its own source.
        file = f'<{path.stem} {number}>'
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        *body, last = ast.parse(source).body
        if not isinstance(last, ast.Expr):
            body.append(last)
        exec(compile(ast.Module(body, []), file, 'exec'), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), file, 'eval'), names)
            if isinstance(value, Figure):
                value.savefig(io.BytesIO())
            shown.append(value)
    return shown


def outputs(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text())['cells']
    return [output for cell in cells for output in cell.get('outputs', [])]


def pictures(path: Path) -> list[Image.Image]:
    images = [output.get('data', {}).get('image/png') for output in outputs(path)]
    return [
        Image.open(io.BytesIO(base64.b64decode(''.join(png)))) for png in images if png
    ]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=NAMES)
def test_a_tutorial_runs_on_the_generated_stand_in(
    path: Path, place: Path, synthetic_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('SIGMAE_DATA', str(place / 'nowhere'))
    stand_ins = place / 'outputs' / 'stand_ins'
    stand_ins.mkdir(parents=True)
    # The chips that stand-ins are made of.
    for folder in synthetic_root.iterdir():
        (stand_ins / folder.name).symlink_to(folder)
    shown = run(path)
    # As many figures as the notebook holds.
    figures = [value for value in shown if isinstance(value, Figure)]
    assert len(figures) == len(pictures(path))
    assert {'barkbeetle', 'eurosat'} & set(os.listdir(stand_ins))


def test_a_tutorial_takes_real_data_where_they_are(
    real_data: Callable[[str], Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('SIGMAE_DATA', str(real_data('eurosat').parent))
    run(TUTORIALS / 'saliency.ipynb')
    assert not (place / 'outputs').exists()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=NAMES)
def test_what_a_tutorial_shows_is_of_its_code_and_of_no_machine(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TUTORIALS))
    fingerprint = importlib.import_module('execute').fingerprint
    content = json.loads(path.read_text())
    again = f'Run it again: python docs/tutorials/execute.py {path.stem}'
    known = content['metadata'].get('code_sha256')
    assert known == fingerprint(content['cells']), again
    code = [cell for cell in content['cells'] if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output['output_type'] for output in outputs(path)}
    assert kinds <= {'stream', 'display_data', 'execute_result'}, again
    said = json.dumps(
        [o for o in outputs(path) if 'image/png' not in o.get('data', {})]
    )
    assert not re.search(r'/(tmp|home|root|work|usr)/|stand-in|[Ww]arning', said)
    assert path.stat().st_size < 600_000
    for picture in pictures(path):
        assert max(picture.size) <= 1200
        # Not empty.
        assert len(picture.convert('L').getcolors()) > 8


def test_there_are_six_tutorials() -> None:
    assert NAMES == [
        'change',
        'finetune',
        'pretrain_eurosat',
        'saliency',
        'torchgeo_script',
        'weights',
    ]
