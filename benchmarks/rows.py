# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Rows of long benchmarks, in files: a finished row is not measured again."""

import argparse
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torchgeo_sigmae._files import write_text

__all__ = ('finished_row', 'row_path')


def row_path(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    """The file of a row."""
    path: Path = arguments.output / 'rows' / f'{name}-seed{seed}.json'
    return path


def finished_row(
    path: Path, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """Read a finished row, or measure and write it.

    Args:
        path: File of the row.
        asked: Everything the row depends on; a file with other values is overwritten.
        measure: Measures the row.

    Returns:
        The row, and whether it was read.
    """
    if path.exists():
        # A damaged file is overwritten, too.
        with suppress(KeyError, TypeError, ValueError):
            content = json.loads(path.read_text())
            if content['asked'] == asked:
                return dict(content['found']), True
    row = measure()
    write_text(path, json.dumps({'asked': asked, 'found': row}, indent=2) + '\n')
    return row, False
