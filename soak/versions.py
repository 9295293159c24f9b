# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The test suite on every supported combination of Python, TorchGeo and kornia.

    make versions                                   before a release: hours, network
    python -m soak.versions --only 3.13-newest-newest     a job: newest of everything
    python -m soak.versions --fast                  what touches TorchGeo and kornia

Every combination is installed in a virtual environment of its own (6 GB), tested and
removed again. A row is kept in OUTPUT/versions for each: what is there already, for the
same commit, is not run again. The environment of the newest TorchGeo and kornia holds
the newest release of everything; what a dependency caps is listed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rows import finished_row
from soak.trial import conclude, trial_parser

ROOT = Path(__file__).parents[1]

PYTHONS = ('3.11', '3.12', '3.13')
TORCHGEO = {'0.8.1': 'torchgeo==0.8.1', '0.9': 'torchgeo==0.9.*', 'newest': 'torchgeo'}
KORNIA = {'0.8.3': 'kornia==0.8.3', 'newest': 'kornia'}

#: Never installed: a file for processors alone, which no torchvision fits.
CONSTRAINTS = 'torch!=2.13.0\n'

#: Tests that stand on TorchGeo and kornia.
FAST = (
    'tests/transforms', 'tests/models', 'tests/tasks', 'tests/test_cli.py',
    'tests/test_main.py',
)  # fmt: skip

#: Whose versions a row tells.
SHOWN = ('torchgeo', 'kornia', 'torch', 'lightning', 'timm')


class Combination(NamedTuple):
    """What is asked for.

    Attributes:
        python: ``3.11``, ``3.12`` or ``3.13``.
        torchgeo: A key of :data:`TORCHGEO`.
        kornia: A key of :data:`KORNIA`.
    """

    python: str
    torchgeo: str
    kornia: str


class UntestedError(Exception):
    """A combination that could not be tested; no row is kept, the next run tries."""


def matrix() -> dict[str, Combination]:
    """List what pip can install.

    Returns:
        Combinations by their names, such as ``3.12-0.9-newest``.
    """
    every = (Combination(*one) for one in product(PYTHONS, TORCHGEO, KORNIA))
    # TorchGeo 0.9 asks for Python 3.12: on 3.11, 0.8.1 is the newest.
    return {
        '-'.join(one): one
        for one in every
        if one.python != '3.11' or one.torchgeo == '0.8.1'
    }


def find_python(version: str) -> str | None:
    """Find an interpreter, as .ci/run does.

    Args:
        version: Such as ``3.12``.

    Returns:
        Its command; None if there is none.
    """
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv'))
    installed = sorted(pyenv.glob(f'versions/{version}.*/bin/python3'))
    check = f'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "{version}")'
    for candidate in (f'python{version}', 'python3', *map(str, installed)):
        try:
            done = subprocess.run([candidate, '-c', check], capture_output=True)
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    return None


def count(report: Path) -> dict[str, Any]:
    """Count a report of pytest.

    Args:
        report: File of JUnit's XML.

    Returns:
        How many passed, failed and were skipped, and the names of those that failed.
    """
    (suite,) = ET.parse(report).getroot().iter('testsuite')
    known = {key: int(suite.attrib[key]) for key in ('tests', 'skipped')}
    failed = sorted(
        f'{case.attrib["classname"]}.{case.attrib["name"]}'
        for case in suite.iter('testcase')
        if case.find('failure') is not None or case.find('error') is not None
    )
    passed = known['tests'] - known['skipped'] - len(failed)
    return {'passed': passed, 'skipped': known['skipped'], 'failed': failed}


def try_out(
    one: Combination, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Install a combination, test it, and remove it.

    Args:
        one: What to install.
        folder: Where its environment and its logs go.
        arguments: See the module.

    Returns:
        The row.

    Raises:
        UntestedError: If it cannot be installed or pytest does not end.
    """
    start = time.monotonic()
    python = find_python(one.python)
    if python is None:
        raise UntestedError(f'not run: there is no Python {one.python} here')
    environment, report = folder / 'environment', folder / 'report.xml'
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(environment, ignore_errors=True)
    report.unlink(missing_ok=True)
    (folder / 'constraints.txt').write_text(CONSTRAINTS)
    unset = {'PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV'}
    known = {key: value for key, value in os.environ.items() if key not in unset}
    own = str(environment / 'bin' / 'python')
    pip = [own, '-m', 'pip', '--disable-pip-version-check']
    with open(folder / 'log', 'w') as log:

        def run(*command: str, **options: Any) -> int:
            print('$', *command, file=log, flush=True)
            return subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                env={**known, 'OMP_NUM_THREADS': '1'}, **options,
            ).returncode  # fmt: skip

        try:
            run(python, '-m', 'venv', str(environment), check=True)
            wanted = [TORCHGEO[one.torchgeo], KORNIA[one.kornia]]
            constraints = str(folder / 'constraints.txt')
            if run(
                *pip, 'install', '--quiet', '--constraint', constraints, '--editable',
                '.[tests]', *wanted,
            ):  # fmt: skip
                raise UntestedError(f'not installed, see {log.name}')
            row = {'installed': _listed(pip), 'capped': _capped(one, pip)}
            workers = ['-n', arguments.jobs, '--dist', 'worksteal']
            run(
                own, '-m', 'pytest', '-q', *(workers if arguments.jobs != '0' else []),
                '-p', 'no:cacheprovider', f'--junitxml={report}',
                *(FAST if arguments.fast else ()),
            )  # fmt: skip
            if not report.exists():
                raise UntestedError(f'pytest did not end, see {log.name}')
            minutes = (time.monotonic() - start) / 60
            return {
                **row, **count(report), 'outcome': 'tested', 'minutes': round(minutes)
            }  # fmt: skip
        finally:
            if not arguments.keep:
                shutil.rmtree(environment, ignore_errors=True)


def _listed(pip: list[str]) -> dict[str, str]:
    """Versions of what a row tells."""
    text = subprocess.check_output([*pip, 'list', '--format=json'], text=True)
    found = {known['name']: known['version'] for known in json.loads(text)}
    return {name: found[name] for name in SHOWN}


def _capped(one: Combination, pip: list[str]) -> list[str]:
    """What is not the newest release where everything should be."""
    if 'newest' not in one.torchgeo or 'newest' not in one.kornia:
        return []
    command = [*pip, 'list', '--outdated', '--format=json']
    text = subprocess.run(command, capture_output=True, text=True).stdout or '[]'
    return [
        f'{known["name"]} {known["version"]} < {known["latest_version"]}'
        for known in json.loads(text)
        if known['name'] != 'pip'
    ]


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Write the table of docs/reliability.

    Args:
        rows: What was found, by the name of the combination.

    Returns:
        A row for every combination, in Markdown.
    """
    lines = [
        f'| Python | {" | ".join(SHOWN)} | passed | failed | skipped | minutes |',
        '|' + '---|' * (len(SHOWN) + 5),
    ]
    for name, row in rows.items():
        python = name.split('-')[0]
        if row['outcome'] != 'tested':
            lines.append(f'| {python} | {name}: {row["outcome"]} |')
            continue
        cells = [row['installed'][package] for package in SHOWN]
        cells += [row['passed'], len(row['failed']), row['skipped'], row['minutes']]
        lines.append(f'| {python} | {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


def main(arguments: argparse.Namespace) -> None:
    """Test all combinations that are asked for.

    Args:
        arguments: See the module.
    """
    git = ['git', '-C', str(ROOT), 'rev-parse', 'HEAD']
    commit = subprocess.check_output(git, text=True).strip()
    rows: dict[str, dict[str, Any]] = {}
    failures = []
    for name, one in matrix().items():
        if name not in arguments.only:
            continue
        folder = (arguments.output / 'versions' / name).resolve()
        asked = {**one._asdict(), 'commit': commit, 'fast': arguments.fast}
        measure = partial(try_out, one, folder, arguments)
        try:
            rows[name], _ = finished_row(folder / 'row.json', asked, measure)
        except UntestedError as error:
            rows[name] = {'outcome': str(error)}
        row = rows[name]
        if row['outcome'] != 'tested':
            failures.append(f'{name}: {row["outcome"]}')
        elif row['failed']:
            failures.append(f'{name}: {", ".join(row["failed"])}')
        print(f'{table({name: row})}\n', flush=True)
    print(table(rows))
    capped = {what for row in rows.values() for what in row.get('capped', ())}
    tested = [name for name in rows if rows[name]['outcome'] == 'tested']
    left = [name for name in matrix() if name not in tested]
    figures = {
        'combinations tested': f'{", ".join(tested)}{" (fast)" * arguments.fast}',
        'not tested in this run': ', '.join(left) or 'none',
        'not the newest release, for a dependency': ', '.join(sorted(capped)) or 'none',
    }
    conclude(arguments.output, 'versions', figures, failures)


if __name__ == '__main__':
    parser = trial_parser(__doc__)
    parser.add_argument('--only', nargs='+', choices=matrix(), default=list(matrix()))
    parser.add_argument('--fast', action='store_true', help='the quicker half of tests')
    parser.add_argument(
        '--jobs', default='auto', help='processes of pytest; 0 for none'
    )
    parser.add_argument('--keep', action='store_true', help='leave the environments')
    sys.exit(main(parser.parse_args()))
