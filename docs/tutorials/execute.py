# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Run the tutorials and keep what they show.

Needs the ``docs`` extra and, for figures that mean something, the real data, see
tutorial_data.py. Takes about a quarter of an hour on one CPU core.

    python docs/tutorials/execute.py [NAME ...]
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def fingerprint(cells: list[dict[str, Any]]) -> str:
    """Hash the code, so that a test can tell outputs of other code.

    Args:
        cells: Of a notebook.

    Returns:
        64 hexadecimal digits.
    """
    code = [cell['source'] for cell in cells if cell['cell_type'] == 'code']
    lines = [source if isinstance(source, str) else ''.join(source) for source in code]
    return hashlib.sha256('\0'.join(lines).encode()).hexdigest()


def execute(path: Path) -> None:
    """Run a notebook from its first cell to its last, and write it back.

    Args:
        path: The notebook.
    """
    # Not above: the tests, which take the function before, do not need them.
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=None).execute(cwd=str(HERE))
    for cell in notebook.cells:
        # When a cell ran and on which machine is nobody's business.
        cell.metadata.pop('execution', None)
    notebook.metadata['language_info'] = {'name': 'python'}
    notebook.metadata['code_sha256'] = fingerprint(notebook.cells)
    nbformat.write(notebook, path)


if __name__ == '__main__':
    os.environ['PYTHONPATH'] = str(HERE.parents[1])
    # Bars as widgets would need ipywidgets; nobody misses them on a page.
    os.environ['PYTHONWARNINGS'] = 'ignore:IProgress not found'
    for name in sys.argv[1:] or sorted(path.stem for path in HERE.glob('*.ipynb')):
        execute(HERE / f'{name}.ipynb')
