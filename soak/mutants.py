# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""How many small mistakes in bands, saliency, masking and registration tests notice.

    python -m soak.mutants [--minutes 15 | --all] [--only MODULE ...]

Mutants (``soak/mutate.py``) are taken in an order that the seed decides, until the
minutes are used up; ``--all`` tests every one. Every module is tested by the files that
mirror it. Survivors that no test can notice, or need not, stand with their reason in
``soak/survivors.toml``. They count as survivors all the same.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from soak.mutate import mutants
from soak.trial import conclude, trial_parser

ROOT = Path(__file__).parents[1]

#: Share of mutants to be killed.
WANTED = 0.85

_CURRICULUM = 'tests/masking/test_curriculum.py'
_STRATEGIES = 'tests/masking/test_strategies.py'
_REGISTRY = 'tests/models/test_registry.py'

#: What is tested, by which tests, the nearest first.
MODULES = {
    'bands.py': ('tests/test_bands.py',),
    'transforms/saliency.py': ('tests/transforms/test_saliency.py',),
    'masking/curriculum.py': (_CURRICULUM, _STRATEGIES),
    'masking/fixed.py': (_STRATEGIES,),
    'masking/noise.py': ('tests/masking/test_noise.py', _STRATEGIES),
    'masking/spectral.py': (_STRATEGIES,),
    'masking/strategies.py': (_STRATEGIES, _CURRICULUM),
    'models/registration.py': (_REGISTRY,),
    'models/registry.py': (_REGISTRY,),
}


def known_survivors() -> dict[str, dict[str, str]]:
    """Read the list of survivors.

    Returns:
        For every module the names of mutants, each with its reason.
    """
    with open(Path(__file__).with_name('survivors.toml'), 'rb') as file:
        return tomllib.load(file)


def every_name(module: str) -> list[str]:
    """List the names of a module's mutants.

    Args:
        module: Its file in the package.

    Returns:
        The names, in the order of the text.
    """
    source = (ROOT / 'torchgeo_sigmae' / module).read_text()
    return [mutant.name for mutant in mutants(source, module)]


def judge(
    rows: list[dict[str, Any]], known: dict[str, dict[str, str]]
) -> tuple[dict[str, str], list[str], list[str]]:
    """Count what was killed.

    Args:
        rows: What :mod:`soak.forked` wrote.
        known: Survivors with their reasons.

    Returns:
        Figures, failures, and the survivors that are not known.
    """
    tried = Counter(row['module'] for row in rows)
    survivors = [row for row in rows if row['survived']]
    alive = Counter(row['module'] for row in survivors)
    killed = len(rows) - len(survivors)
    share = killed / max(len(rows), 1)
    new = [
        f'{row["module"]}:{row["line"]} {row["name"]}'
        for row in survivors
        if row['name'] not in known.get(row['module'], {})
    ]
    figures = {
        'killed, all modules': f'{killed} of {len(rows)} ({share:.1%})',
        **{
            f'killed, {module}': f'{tried[module] - alive[module]} of {tried[module]}'
            for module in sorted(tried)
        },
        'survivors without a reason': str(len(new)),
    }
    failures = []
    if share < WANTED:
        failures.append(f'{share:.1%} of the mutants are killed, under {WANTED:.0%}')
    return figures, failures, new


def main(arguments: argparse.Namespace) -> None:
    """Test mutants.

    Args:
        arguments: See the module.
    """
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    results = output / 'mutants.jsonl'
    results.unlink(missing_ok=True)
    job = {
        'package': 'torchgeo_sigmae', 'seed': arguments.seed, 'results': str(results),
        'minutes': None if arguments.all else arguments.minutes,
        'modules': {module: MODULES[module] for module in arguments.only},
    }  # fmt: skip
    path = output / 'mutants.job'
    path.write_text(json.dumps(job))
    # A process of its own, that has not imported what is changed.
    done = subprocess.run([sys.executable, '-m', 'soak.forked', str(path)], cwd=ROOT)
    text = results.read_text() if results.exists() else ''
    rows = [json.loads(line) for line in text.splitlines()]
    known = known_survivors()
    figures, failures, new = judge(rows, known)
    total = sum(len(every_name(module)) for module in arguments.only)
    figures['tried'] = f'{len(rows)} of {total}, in the order of seed {arguments.seed}'
    if done.returncode or not rows:
        failures.append(f'soak.forked ended with status {done.returncode}')
    print('Survivors without a reason:', *new or ['none'], sep='\n  ')
    conclude(arguments.output, 'mutants', figures, failures)


if __name__ == '__main__':
    parser = trial_parser(__doc__)
    parser.add_argument('--minutes', type=float, default=15, help='after these, judge')
    parser.add_argument('--all', action='store_true', help='every mutant, however long')
    parser.add_argument(
        '--only', nargs='+', choices=list(MODULES), default=list(MODULES)
    )
    main(parser.parse_args())
