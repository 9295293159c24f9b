# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Long benchmarks made of rows: finished ones are kept, and not measured again."""

import argparse
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torchgeo_sigmae._files import write_text

__all__ = ('finished_row', 'row_path')


def row_path(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    """Say where a row is kept.

    Args:
        arguments: With the folder, ``output``.
        name: Name of the row.
        seed: Its seed.

    Returns:
        The file.
    """
    path: Path = arguments.output / 'rows' / f'{name}-seed{seed}.json'
    return path


def finished_row(
    path: Path, asked: dict[str, Any], measure: Callable[[], dict[str, float]]
) -> tuple[dict[str, float], bool]:
    """Read a row that was measured before, else measure and keep it.

    Args:
        path: Where the row is kept.
        asked: What the row depends on; a row of anything else is measured again.
        measure: Measures the row.

    Returns:
        The row, and whether it was there before.
    """
    if path.exists():
        # One that is damaged is measured again, too.
        with suppress(KeyError, TypeError, ValueError):
            kept = json.loads(path.read_text())
            if kept['asked'] == asked:
                found: dict[str, float] = kept['found']
                return found, True
    found = measure()
    write_text(path, json.dumps({'asked': asked, 'found': found}, indent=2) + '\n')
    return found, False
