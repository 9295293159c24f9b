# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The trials that judge the tests: mutants, coverage and versions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from soak import coverage, mutants, versions
from soak.mutate import mutants as mutants_of

ROOT = Path(__file__).parents[1]

SOURCE = '''
"""Prose."""
import math
LIMIT = 3
__all__ = ('clip',)

def clip(x: int = 0, *, low: bool = True) -> float:
    """More prose."""
    if x >= LIMIT and low:
        raise ValueError('x: too large, 3 at most')
    return max(math.sqrt(x), 1)
'''


def test_mutants_are_other_programs_with_names_of_their_own() -> None:
    found = list(mutants_of(SOURCE, 'clip.py'))
    names = [mutant.name for mutant in found]
    assert len(set(names)) == len(names)
    own = compile(SOURCE, 'clip.py', 'exec')
    assert all(mutant.code != own for mutant in found)
    for name in (
        'module: 3 -> 4', 'clip: 0 -> 1', 'clip: True -> False', 'clip: GtE -> Gt',
        'clip: And -> Or', "clip: raise ValueError('x: too large, 3 at most') -> pass",
        'clip: if x >= LIMIT and low -> if not (x >= LIMIT and low)',
        'clip: max -> min', 'clip: 1 -> 2',
        'clip: return max(math.sqrt(x), 1) -> return None',
    ):  # fmt: skip
        assert name in names
    assert len(names) == 10
    # Nothing is left behind in the next mutant.
    space: dict = {}
    exec(found[-1].code, space)
    assert space['LIMIT'] == 3


@pytest.mark.parametrize('module', list(mutants.known_survivors()))
def test_survivors_with_a_reason_exist(module: str) -> None:
    known = mutants.known_survivors()[module]
    assert set(known) <= set(mutants.every_name(module))
    assert all(known.values())


def test_modules_have_tests() -> None:
    for module, tests in mutants.MODULES.items():
        assert (ROOT / 'torchgeo_sigmae' / module).exists()
        assert all((ROOT / test).exists() for test in tests)


def test_mutants_are_killed_or_survive(tmp_path: Path) -> None:
    package = tmp_path / 'tiny'
    package.mkdir()
    (package / '__init__.py').write_text('from .core import bigger\n')
    core = 'def bigger(x):\n    if x < 0:\n        x = 0\n    return x + 1\n'
    (package / 'core.py').write_text(core)
    (tmp_path / 'test_tiny.py').write_text(
        'from tiny import bigger\ndef test(): assert bigger(1) == 2\n'
    )
    job = {
        'package': 'tiny', 'seed': 0, 'minutes': None,
        'results': str(tmp_path / 'results.jsonl'),
        'modules': {'core.py': ['test_tiny.py']},
    }  # fmt: skip
    (tmp_path / 'job').write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, '-m', 'soak.forked', 'job'], cwd=tmp_path, text=True,
        env={'PYTHONPATH': f'{ROOT}:{tmp_path}', 'PATH': '/usr/bin:/bin'},
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / 'results.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    alive = {row['name'] for row in rows if row['survived']}
    # Nothing under zero is tested.
    assert alive == {'bigger: Lt -> LtE', 'bigger: 0 -> 1', 'bigger: 0 -> 1 #2'}
    killed = {row['name'] for row in rows} - alive
    assert killed == {
        'bigger: if x < 0 -> if not x < 0', 'bigger: Add -> Sub', 'bigger: 1 -> 2',
        'bigger: return x + 1 -> return None',
    }  # fmt: skip
    figures, failures, new = mutants.judge(rows, {'core.py': {'bigger: 0 -> 1': 'y'}})
    assert figures['killed, all modules'] == '4 of 7 (57.1%)'
    assert failures == ['57.1% of the mutants are killed, under 85%']
    assert len(new) == 2


def test_coverage_is_judged() -> None:
    totals = {
        'covered_lines': 97, 'num_statements': 100, 'covered_branches': 9,
        'num_branches': 10,
    }  # fmt: skip
    figures, failures = coverage.judge(totals)
    assert figures['lines of torchgeo_sigmae'] == '97 of 100 (97.0 %)'
    assert failures == []
    _, failures = coverage.judge({**totals, 'covered_lines': 96, 'num_branches': 11})
    assert failures == [
        '96.0 % of the lines run, under 97 %',
        '81.8 % of the branches run, under 90 %',
    ]


def test_the_matrix_is_what_pip_can_install() -> None:
    names = list(versions.matrix())
    assert len(names) == 14
    assert [name for name in names if name.startswith('3.11')] == [
        '3.11-0.8.1-0.8.3', '3.11-0.8.1-newest',
    ]  # fmt: skip
    assert {'3.12-0.9-newest', '3.13-newest-newest'} <= set(names)
    assert all((ROOT / path).exists() for path in versions.FAST)
    python = versions.find_python(f'{sys.version_info[0]}.{sys.version_info[1]}')
    assert python is not None
    assert versions.find_python('2.99') is None


def test_a_report_of_pytest_is_counted(tmp_path: Path) -> None:
    (tmp_path / 'test_it.py').write_text(
        'import pytest\n'
        'def test_good(): pass\n'
        'def test_bad(): assert False\n'
        'def test_skipped(): pytest.skip("why")\n'
        '@pytest.fixture\n'
        'def broken(): raise OSError\n'
        'def test_error(broken): pass\n'
    )
    report = tmp_path / 'report.xml'
    subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', f'--junitxml={report}', 'test_it.py'],
        cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    row = versions.count(report)
    assert row == {
        'passed': 1, 'skipped': 1, 'failed': ['test_it.test_bad', 'test_it.test_error'],
    }  # fmt: skip
    installed = dict.fromkeys(versions.SHOWN, '1.0')
    row |= {'outcome': 'tested', 'minutes': 3, 'installed': installed}
    rows = {'3.13-newest-0.8.3': row, '3.12-0.9-newest': {'outcome': 'not run: x'}}
    text = versions.table(rows).splitlines()
    assert text[2] == f'| 3.13 |{" 1.0 |" * 5} 1 | 2 | 1 | 3 |'
    assert text[3] == '| 3.12 | 3.12-0.9-newest: not run: x |'
