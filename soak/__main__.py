# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""All trials, two at a time, in under an hour on two cores.

    python -m soak [--only NAME ...] [--output FOLDER]

Writes OUTPUT/NAME.log and OUTPUT/NAME.json for every trial and OUTPUT/report.md, and
ends with status 1 if one of them failed or took too long.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

#: Minutes after which a trial is stopped, the longest first. Two run at a time.
TRIALS = {
    'coverage': 50, 'mutants': 18, 'kills': 13, 'memory': 16, 'imagery': 8,
    'processes': 8, 'numerics': 3,
}  # fmt: skip


def run(output: Path, name: str) -> str | None:
    """Run a trial, its output in a file.

    Args:
        output: Folder of the records.
        name: Name of the trial.

    Returns:
        Why it failed, or None.
    """
    (output / f'{name}.json').unlink(missing_ok=True)
    command = [sys.executable, '-m', f'soak.{name}', '--output', str(output)]
    # A thread each: two trials run side by side.
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with open(output / f'{name}.log', 'w') as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(60 * TRIALS[name])
        except subprocess.TimeoutExpired:
            return f'not finished in {TRIALS[name]} minutes'
        finally:
            # What it left behind, too: a trial that kills may be killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
    return None if status == 0 else f'status {status}, see {log.name}'


def table(output: Path) -> str:
    """Write the table of docs/reliability.

    Args:
        output: Folder of the records.

    Returns:
        A row for every figure.
    """
    lines = ['| trial | what | found |', '|---|---|---|']
    records = {
        name: json.loads(path.read_text())
        for name in TRIALS
        if (path := output / f'{name}.json').exists()
    }
    for name, record in records.items():
        for what, figure in record['figures'].items():
            lines.append(f'| `soak.{name}` | {what} | {figure} |')
        for failure in record['failures']:
            lines.append(f'| `soak.{name}` | **failed** | {failure} |')
    places = {record['where'] for record in records.values()}
    return '\n'.join([*lines, '', *sorted(places)]) + '\n'


def main(arguments: argparse.Namespace) -> int:
    """Run the trials.

    Args:
        arguments: See the module.

    Returns:
        The exit status.
    """
    arguments.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        waiting = {
            pool.submit(partial(run, arguments.output, name)): name
            for name in TRIALS
            if name in arguments.only
        }
        print(f'Trials: {", ".join(waiting.values())}, two at a time ...', flush=True)
        for done in as_completed(waiting):
            why = done.result()
            failed += why is not None
            print(f'{waiting[done]}: {why or "holds"}', flush=True)
    (arguments.output / 'report.md').write_text(table(arguments.output))
    print(f'\n{table(arguments.output)}\nWrote {arguments.output / "report.md"}.')
    return 1 if failed else 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--output', type=Path, default=Path('outputs/soak'))
    parser.add_argument('--only', nargs='+', choices=list(TRIALS), default=list(TRIALS))
    sys.exit(main(parser.parse_args()))
