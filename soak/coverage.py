# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Which lines and branches of the package the test suite runs.

    python -m soak.coverage [--all]

Processes that tests start are counted, too: training runs, commands, workers of data
loaders (``[tool.coverage.run]`` in pyproject.toml). A process that is killed leaves
nothing behind. One process of pytest, since two trials run side by side; tests of what
is not the package, the slowest of all, are left out unless ``--all`` is given.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from soak.trial import conclude, trial_parser

ROOT = Path(__file__).parents[1]

#: Tests of benchmarks, examples, documentation and packages, and of killed runs.
LEFT_OUT = (
    'tests/docs', 'tests/resume/test_kill.py', 'tests/test_barkbeetle.py',
    'tests/test_benchmarks.py', 'tests/test_comparison.py', 'tests/test_examples.py',
    'tests/test_own_geotiffs.py', 'tests/test_release.py', 'tests/test_wheel.py',
)  # fmt: skip

#: Per cent that have to run.
LINES, BRANCHES = 97.0, 90.0


def judge(totals: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Compare with what is wanted.

    Args:
        totals: Of the report of coverage, as JSON.

    Returns:
        Figures and failures.
    """
    figures, failures = {}, []
    for what, run, every, wanted in (
        ('lines', totals['covered_lines'], totals['num_statements'], LINES),
        ('branches', totals['covered_branches'], totals['num_branches'], BRANCHES),
    ):
        share = 100 * run / every
        figures[f'{what} of torchgeo_sigmae'] = f'{run} of {every} ({share:.1f} %)'
        if share < wanted:
            failures.append(f'{share:.1f} % of the {what} run, under {wanted:.0f} %')
    return figures, failures


def main(arguments: argparse.Namespace) -> None:
    """Run the tests and judge what they ran.

    Args:
        arguments: See the module.
    """
    folder = (arguments.output / 'coverage').resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob('data*'):
        old.unlink()
    # Children of other folders find the package here, installed or not.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    environment = {
        **os.environ, 'PYTHONPATH': path, 'COVERAGE_FILE': str(folder / 'data'),
    }  # fmt: skip
    coverage = [sys.executable, '-m', 'coverage']

    def run(*command: str) -> int:
        return subprocess.run(command, cwd=ROOT, env=environment).returncode

    pytest = ['-m', 'pytest', '-q', '-p', 'no:cacheprovider']
    if not arguments.all:
        pytest += [f'--ignore={path}' for path in LEFT_OUT]
    status = run(*coverage, 'run', *pytest, *arguments.tests)
    run(*coverage, 'combine', '--quiet')
    report = folder / 'report.json'
    report.unlink(missing_ok=True)
    run(*coverage, 'report')
    run(*coverage, 'json', '--quiet', '-o', str(report))
    figures, failures = judge(json.loads(report.read_text())['totals'])
    if status:
        failures.append(f'the tests end with status {status}')
    conclude(arguments.output, 'coverage', figures, failures)


if __name__ == '__main__':
    parser = trial_parser(__doc__)
    parser.add_argument('--all', action='store_true', help='leave no test out')
    parser.add_argument('tests', nargs='*', help='arguments of pytest')
    main(parser.parse_args())
