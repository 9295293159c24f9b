# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Imports within the package go downward, and never in circles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import torchgeo_sigmae

PACKAGE = Path(torchgeo_sigmae.__file__).parent

#: Folders and files, each of which may import those before it; see docs/dev/house.md.
#: Files with an underscore come first.
LAYERS = (
    *('sensors', 'bands', 'patches', 'metrics', 'optim', 'transforms', 'masking'),
    *('models', 'weights', 'plotting', 'datasets', 'datamodules', 'callbacks'),
    *('tasks', 'evaluation', 'maps', '_public', 'cli', '__init__', '__main__'),
)


def imported(path: Path) -> set[Path]:
    """Files of the package that a file imports, also within functions."""
    files = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = path.parents[node.level - 1].joinpath(
                *(node.module or '').split('.')
            )
            for name in (module / alias.name for alias in node.names):
                for each in (name, module):
                    if (file := each.with_suffix('.py')).exists():
                        files.add(file)
                        break
                    if (file := each / '__init__.py').exists():
                        files.add(file)
                        break
    return files


def layer(path: Path) -> int:
    name = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
    private = name.startswith('_') and name not in LAYERS
    return -1 if private else LAYERS.index(name)


def test_imports_go_downward() -> None:
    graph = {path: imported(path) for path in PACKAGE.rglob('*.py')}
    assert sum(map(len, graph.values())) > 300
    upward = [
        f'{path} imports {file}'
        for path, files in graph.items()
        for file in files
        if layer(file) > layer(path)
    ]
    assert not upward
    # CycleError names the files.
    TopologicalSorter(graph).prepare()
