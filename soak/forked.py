# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Tests mutants in forked children: torch is imported once, and our package never.

    python -m soak.forked JOB

``JOB`` is a file of JSON: ``package`` (its folder), ``modules`` (each with its tests),
``seed``, ``minutes`` (or null) and ``results``, a file that gets a line of JSON for
every mutant. This process imports what the tests import except the package itself, so
that every child imports the package anew, one module of it with a mistake.
"""

import gc
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from soak.mutate import mutants

#: CPU seconds a mutant may take: this many times what the tests take, and some.
FACTOR, SECONDS = 4, 20

#: What a mutant cannot reach, since it starts another Python.
DESELECT = 'test_the_import_survives_without_any_table'


def run_tests(tests: Sequence[str]) -> int:
    """Run tests until the first failure, without a cache and always alike.

    Args:
        tests: Files.

    Returns:
        The status of pytest.
    """
    with suppress(ImportError):
        from hypothesis import Phase, settings

        settings.register_profile(
            'mutants', max_examples=20, derandomize=True, database=None, deadline=None,
            phases=(Phase.explicit, Phase.generate),
        )  # fmt: skip
        settings.load_profile('mutants')
    # Without what takes longer than the tests: most of all the collecting of garbage,
    # which looks at all of torch.
    gc.disable()
    os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'
    off = ('cacheprovider', 'unraisableexception', 'threadexception', 'junitxml')
    quick = ['-x', '-q', '--tb=line', '-k', f'not {DESELECT}']
    quick += [part for name in off for part in ('-p', f'no:{name}')]
    return int(pytest.main([*quick, *tests]))


def in_child(task: Callable[[], int], cpu: float, log: Path) -> tuple[int, float]:
    """Do something in a forked child.

    Args:
        task: What to do; gives the exit status.
        cpu: Seconds of processor time after which the child ends.
        log: Where its output goes.

    Returns:
        The child's status (negative: the signal that ended it), and the processor time
        it took.
    """
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu) + 1, int(cpu) + 2))
            # One that waits takes no processor time.
            signal.alarm(20 * int(cpu) + 60)
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            status = task()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status, usage = os.wait4(pid, 0)
    # Whatever the tests started.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def put_in_place(path: Path, code: CodeType) -> None:
    """Make the import of a file give this code, whatever the file says."""
    own = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, name: str) -> CodeType | None:
        found = Path(loader.path).resolve()
        return code if found == path else own(loader, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign,assignment]


def preload(tests: Sequence[str], results: Path) -> None:
    """Import what tests import, but nothing of this repository.

    Args:
        tests: Files.
        results: Files beside this one are written.
    """
    listed = results.with_suffix('.modules')

    def task() -> int:
        status = run_tests(tests)
        listed.write_text('\n'.join(filter(_is_foreign, list(sys.modules))))
        return status

    log = results.with_suffix('.log')
    status, _ = in_child(task, 3600, log)
    if status:
        raise SystemExit(f'tests: {list(tests)} fail without a mutant, see {log}')
    for name in listed.read_text().split():
        # Some names are no modules that can be imported by them.
        with suppress(Exception):
            importlib.import_module(name)


def _is_foreign(name: str) -> bool:
    """Whether a module is installed, not ours and no test."""
    file = getattr(sys.modules[name], '__file__', None)
    if file is None:
        return False
    path = Path(file).resolve()
    return 'site-packages' in path.parts or not path.is_relative_to(Path.cwd())


def main(job: dict[str, Any]) -> None:
    """Test mutants in random order until all are tested or the time is up.

    Args:
        job: See the module.
    """
    end = time.monotonic() + 60 * (job['minutes'] or 1e9)
    results, package = Path(job['results']), Path(job['package']).resolve()
    every = {test for tests in job['modules'].values() for test in tests}
    preload(sorted(every), results)
    # Children copy no memory for the sake of counting references in it.
    gc.freeze()
    # Threads of libraries wait; no child needs them.
    warnings.filterwarnings('ignore', '.*multi-threaded', DeprecationWarning)
    waiting, limits = [], {}
    for module, tests in job['modules'].items():
        status, seconds = in_child(
            partial(run_tests, tests), 3600, results.with_suffix('.log')
        )
        if status:
            raise SystemExit(f'{module}: {tests} fail without a mutant')
        limits[module] = FACTOR * seconds + SECONDS
        print(f'{module}: its tests take {seconds:.1f} s', flush=True)
        path = package / module
        found = mutants(path.read_text(), str(path))
        waiting += [(module, path, mutant) for mutant in found]
    random.Random(job['seed']).shuffle(waiting)
    with open(results, 'w') as file:
        for done, (module, path, mutant) in enumerate(waiting):
            if time.monotonic() > end:
                break

            def task(
                path: Path = path, code: CodeType = mutant.code, module: str = module
            ) -> int:
                put_in_place(path, code)
                return run_tests(job['modules'][module])

            log = results.with_suffix('.log')
            status, seconds = in_child(task, limits[module], log)
            row = {
                'module': module, 'name': mutant.name, 'line': mutant.line,
                'survived': status == 0, 'seconds': round(seconds, 2),
            }  # fmt: skip
            print(json.dumps(row), file=file, flush=True)
            mark = 'survived' if status == 0 else 'killed'
            what = f'{module}:{mutant.line} {mutant.name}'
            print(f'{done + 1}/{len(waiting)} {mark} {what}', flush=True)


if __name__ == '__main__':
    main(json.loads(Path(sys.argv[1]).read_text()))
