# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Code blocks and commands of our Markdown pages, found as a renderer finds them."""

import argparse
import logging
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]

#: Languages of blocks that are text to a reader, or Sphinx's own.
SILENT = ('bibtex', 'text', '{csv-table}', '{include}', '{toctree}')
_PROGRAMS = re.compile(
    r'([A-Z_]+=\S* )*(export|make|nox|pip|pytest|python|torchgeo-sigmae) \S'
)


@dataclass(frozen=True)
class Block:
    """A code block, or a command within a sentence."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'


def pages() -> list[str]:
    """All Markdown pages, relative to the repository."""
    paths = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
    built = ROOT / 'docs' / '_build'
    return [str(p.relative_to(ROOT)) for p in paths if built not in p.parents]


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page in order; commands in sentences as ``console``."""
    parsed = MarkdownIt('commonmark').enable('table')
    line = 0
    for token in parsed.parse((ROOT / page).read_text()):
        line = token.map[0] + 1 if token.map else line
        if token.type == 'fence':
            language = token.info.strip() or 'text'
            yield Block(page, line + 1, language.split()[0], token.content)
        for child in token.children or ():
            text = ' '.join(child.content.split())
            if child.type == 'code_inline' and _PROGRAMS.match(text):
                yield Block(page, line, 'console', text)


def commands(block: Block, folder: Path, known: dict[str, str]) -> list[list[str]]:
    """The commands of a block, as the shell would call them.

    Args:
        block: A block of a shell's language.
        folder: Where it would run: patterns of file names are looked up there.
        known: What to put in place of words like ``PATH`` and ``ENCODER``.
    """
    calls, exports = [], ['set -ef']
    for line in block.text.replace('\\\n', ' ').splitlines():
        plain = re.sub(r'^([A-Z_]+=\S* )+', '', line.strip())
        if not plain or plain.startswith('#'):
            continue
        if plain.startswith('export '):
            exports.append(f'set +f; {plain}; set -f')
            continue
        # What is in brackets may be left out: here it is taken.
        plain = re.sub(r' \[(-.*?)\]', r' \1', plain)
        script = '\n'.join([*exports, f"printf '%s\\0' {plain}"])
        shell = subprocess.run(
            ['bash', '-c', script], cwd=folder, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        words = shell.stdout.split('\0')[:-1]
        calls.append([known.get(word, word) for word in words])
    return calls


class _ParsedError(Exception):
    """A program has parsed its arguments."""


def parse(command: list[str]) -> None:
    """Let a Python program parse its arguments, and stop it there.

    Args:
        command: ``python -m module ...`` or ``python script ...``.

    Raises:
        AssertionError: If the program refuses the arguments, or does not parse any.
    """
    module = command[1] == '-m'
    name, arguments = (command[2], command[3:]) if module else (command[1], command[2:])
    own = argparse.ArgumentParser.parse_known_args

    def parse_args(self, args=None, namespace=None):
        _, unknown = own(self, args, namespace)
        if unknown:
            self.error(f'unrecognized arguments: {" ".join(unknown)}')
        raise _ParsedError

    def parse_known_args(self, args=None, namespace=None):
        own(self, args, namespace)
        raise _ParsedError

    # Benchmarks quieten Lightning for their process, which here is that of all tests.
    lightning = logging.getLogger('lightning.pytorch')
    level = lightning.level
    with (
        mock.patch.object(argparse.ArgumentParser, 'parse_args', parse_args),
        mock.patch.object(
            argparse.ArgumentParser, 'parse_known_args', parse_known_args
        ),
        mock.patch.object(sys, 'argv', [name, *arguments]),
    ):
        try:
            if module:
                runpy.run_module(name, run_name='__main__')
            else:
                script = Path(name) if Path(name).exists() else ROOT / name
                runpy.run_path(str(script), run_name='__main__')
        except _ParsedError:
            return
        except SystemExit as exit_:
            raise AssertionError(
                f'{" ".join(command)}: the program refuses this'
            ) from exit_
        finally:
            lightning.setLevel(level)
    raise AssertionError(f'{" ".join(command)}: the program parses no arguments')
