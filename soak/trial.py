# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What all trials share: their options, and how they end."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import where
from torchgeo_sigmae._files import write_text

__all__ = ('conclude', 'trial_parser')

_START = time.monotonic()


def trial_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a trial.

    Args:
        description: Docstring of its module.

    Returns:
        A parser that knows ``--output`` and ``--seed``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--output', type=Path, default=Path('outputs/soak'))
    parser.add_argument('--seed', type=int, default=0, help='of everything random')
    return parser


def conclude(
    output: Path, name: str, figures: Mapping[str, str], failures: Sequence[str]
) -> None:
    """Print and keep what a trial found, and end it.

    Args:
        output: Folder of the records.
        name: Name of the trial.
        figures: What was measured, in words: a row of docs/reliability each.
        failures: What does not hold; none if all is well.

    Raises:
        SystemExit: Status 1 if there are failures.
    """
    minutes = (time.monotonic() - _START) / 60
    record = {
        'figures': dict(figures), 'failures': list(failures),
        'minutes': round(minutes, 1), 'where': where(),
    }  # fmt: skip
    write_text(output / f'{name}.json', json.dumps(record, indent=2) + '\n')
    print(f'\n{name}, {minutes:.1f} minutes')
    for what, figure in figures.items():
        print(f'  {what}: {figure}')
    for failure in failures:
        print(f'  FAILED: {failure}')
    sys.exit(1 if failures else 0)
