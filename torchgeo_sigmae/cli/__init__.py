# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The command line: every command of ``torchgeo-sigmae``.

A command is a typed function with a docstring, which returns the files it wrote. Its
parameters become arguments and options, see :mod:`.parser`. It raises ``OSError`` where
a file cannot be read or written, and ``ValueError`` where an argument is out of range
or does not fit the data. Modules of commands import what is slow to import within the
functions, so that ``--help`` answers at once.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .._version import __version__
from .demo import demo
from .evaluate import evaluate_features, evaluate_reconstruction
from .maps import (
    map_embedding,
    map_reconstruction,
    map_saliency,
    map_similarity,
    map_view,
)
from .pack import pack
from .parser import Parser, call, error_line, fail, suggestion, summary
from .weights import adapt_bands, publish

if TYPE_CHECKING:
    from .fit import SIGMAECLI

__all__ = ('COMMANDS', 'TRAINER_COMMANDS', 'main', 'run_cli')

#: Our commands; their functions say in the first line what they do.
COMMANDS: dict[str, Callable[..., list[Path]]] = {
    'map saliency': map_saliency,
    'map embedding': map_embedding,
    'map similarity': map_similarity,
    'map reconstruction': map_reconstruction,
    'map view': map_view,
    'evaluate features': evaluate_features,
    'evaluate reconstruction': evaluate_reconstruction,
    'pack': pack,
    'adapt-bands': adapt_bands,
    'publish': publish,
    'demo': demo,
}

#: The commands of LightningCLI, for every task and datamodule of TorchGeo.
TRAINER_COMMANDS = {
    'fit': 'Pretrain or fine-tune a model.',
    'validate': 'Evaluate a model on validation data.',
    'test': 'Evaluate a model on test data.',
    'predict': 'Run a model on new data.',
}

_PROGRAM = 'torchgeo-sigmae'


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments; None for those of the process.
    """
    argv = list(sys.argv[1:] if args is None else args)
    first = argv[0] if argv else ''
    if first == '--version':
        print(f'{_PROGRAM} {__version__}, TorchGeo {version("torchgeo")}')
    elif first in {'-h', '--help'}:
        print(_help())
    elif first in TRAINER_COMMANDS or first.partition('=')[0] in {'-c', '--config'}:
        with error_line(_PROGRAM):
            run_cli(args)
    else:
        name = next((n for n in (' '.join(argv[:2]), first) if n in COMMANDS), None)
        if name is None:
            _no_such_command(argv)
        else:
            _run(name, argv[len(name.split()) :])


def run_cli(args: Sequence[str] | None = None, run: bool = True) -> 'SIGMAECLI':
    """Run a command of LightningCLI, or make what it would run.

    Args:
        args: Arguments; None for those of the process.
        run: Whether the first argument is a command to run; otherwise task, datamodule
            and trainer are made from the arguments, and left to the caller.

    Returns:
        The command line, with ``model``, ``datamodule`` and ``trainer``.
    """
    from .fit import SIGMAECLI

    return SIGMAECLI(args, run)


def _run(name: str, argv: Sequence[str]) -> None:
    """Run one of our commands."""
    parser = Parser(f'{_PROGRAM} {name}', COMMANDS[name])
    values = parser.parse_args(argv)
    with error_line(parser.prog):
        files = call(COMMANDS[name], values)
    if files:
        print(f'Wrote {", ".join(map(str, files))}.')


def _help(prefix: str = '') -> str:
    """List the commands that start with a word."""
    lines = TRAINER_COMMANDS | {
        name: summary(function) for name, function in COMMANDS.items()
    }
    lines = {name: line for name, line in lines.items() if name.startswith(prefix)}
    return '\n'.join(
        [
            f'usage: {_PROGRAM} {prefix}COMMAND ...',
            '',
            'Masked-autoencoder pretraining for multispectral imagery, in TorchGeo.',
            '',
            'commands:',
            *(f'  {name:<25}{line}' for name, line in lines.items()),
            '',
            f'{_PROGRAM} COMMAND --help describes a command.',
            f'{_PROGRAM} --version shows the versions installed.',
        ]
    )


def _no_such_command(argv: Sequence[str]) -> None:
    """Show the help of a group of commands, or say which command might be meant."""
    group = f'{argv[0]} ' if argv else ''
    if group and any(name.startswith(group) for name in COMMANDS):
        if argv[1:2] in (['-h'], ['--help']):
            print(_help(group))
            return
        typed = ' '.join(argv[:2])
    else:
        typed = ' '.join(argv[:1])
    if not typed:
        fail(_PROGRAM, f'no command. {_PROGRAM} --help lists them.')
    names = {name: name for name in (*TRAINER_COMMANDS, *COMMANDS)}
    # A word of a command's name will do: saliency for map saliency.
    words = {name.split()[-1]: name for name in reversed(names)}
    options = {'--help': '--help', '--version': '--version'}
    hint = suggestion(typed, {**words, **names, **options})
    fail(_PROGRAM, f'no command {typed!r}.{hint} {_PROGRAM} --help lists all.')
