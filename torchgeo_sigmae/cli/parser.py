# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Arguments and options of a command, from the signature of its function."""

import difflib
import inspect
import os
import pydoc
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, NoReturn, TypeVar, cast, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentParser

__all__ = (
    'OneLineErrors',
    'Parser',
    'call',
    'error_line',
    'fail',
    'suggestion',
    'summary',
)

T = TypeVar('T')


def fail(program: str, message: str) -> NoReturn:
    """Say in one line what is wrong with a command, and exit with status 2."""
    sys.stderr.write(f'{program}: error: {_plain(message)}\n')
    raise SystemExit(2)


def _plain(message: str) -> str:
    """Make one line of a message; of jsonargparse's on unions, keep the cause."""
    message = re.sub(r"<class '([\w.]+)'>", r'\1', ' '.join(message.split()))
    union = re.fullmatch(
        r'(--\S+: )?.*Union subtypes.*? Errors: - (.*?) - Expected a NoneType.*',
        message,
    )
    if union:
        message = (union[1] or '') + union[2]
    option = re.search(
        r"Problem with given class_path '(\S+)': Option '(\w+)' is not accepted",
        message,
    )
    if option:
        message = f'{option[1]} has no argument {option[2]!r}.'
        function = pydoc.locate(option[1])
        taken = inspect.signature(function).parameters if callable(function) else {}
        if option[2] not in taken:
            message += suggestion(option[2], list(taken))
        else:
            message += f' A configuration cannot give *{option[2]}.'
    return message


@contextmanager
def error_line(program: str) -> Iterator[None]:
    """Show errors of arguments and files as one line in place of a traceback.

    With ``JSONARGPARSE_DEBUG`` in the environment the traceback is shown.
    """
    try:
        yield
    except Exception as error:
        expected = isinstance(error, (ImportError, ValueError, OSError))
        # Lightning and TorchGeo have one each.
        expected |= type(error).__name__ == 'MisconfigurationException'
        if not expected or 'JSONARGPARSE_DEBUG' in os.environ:
            raise
        fail(program, str(error))


def suggestion(typed: str, choices: Mapping[str, str] | Sequence[str]) -> str:
    """Ask whether the most similar choice was meant, or its value in a mapping.

    The question starts with a space; it is empty if nothing is similar.
    """
    close = difflib.get_close_matches(typed, choices, n=1)
    if not close:
        return ''
    meant = choices[close[0]] if isinstance(choices, Mapping) else close[0]
    return f' Did you mean {meant!r}?'


def summary(function: Callable[..., Any]) -> str:
    """The first line of a docstring."""
    return str(docstring_parser.parse(function.__doc__ or '').short_description)


class OneLineErrors(ArgumentParser):
    """A parser that says in one line what is wrong, with a suggestion for typos."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Initialize a new OneLineErrors instance; arguments as the parser's."""
        # A beginning of an option is a typo.
        super().__init__(*args, **{'allow_abbrev': False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2."""
        if not self.exit_on_error or 'JSONARGPARSE_DEBUG' in os.environ:
            super().error(message, ex)
        parser = getattr(ex, 'subcommand_parser', None) or self
        options = parser._option_string_actions
        keys = {str(action.dest): str(name) for name, action in options.items()}
        message = re.sub(
            r'Parser key "([\w.]+)"', lambda m: keys.get(m[1], m[1]), message
        )
        if match := re.match(r'(unrecognized arguments: )(--[^\s=]+)', message, re.I):
            message = f'no option {match[2]!r}.' + suggestion(match[2], list(options))
        elif match := re.match(r'the following arguments are required: (.*)', message):
            names = [keys.get(name, name) for name in match[1].split(', ')]
            message = f'{", ".join(names)} must be given.'
        fail(parser.prog.replace(' [options]', ''), message)


class Parser(OneLineErrors):
    """The arguments of a function.

    Required parameters are arguments, all others and keyword-only ones are options:
    ``batch_size`` is ``--batch-size``. A ``bool`` is a switch, a sequence takes several
    words, and a parameter that is a dataclass stands for its fields. Help comes from
    the docstrings.
    """

    def __init__(self, prog: str, function: Callable[..., Any]) -> None:
        """Initialize a new Parser instance.

        Args:
            prog: The program and its command.
            function: What is called.
        """
        documented = docstring_parser.parse(function.__doc__ or '')
        text = (documented.short_description, documented.long_description)
        super().__init__(
            prog=prog,
            description='\n\n'.join(filter(None, text)),
        )
        self._add_parameters(function)

    def _add_parameters(self, function: Any) -> None:
        """Add the parameters of a function or a dataclass."""
        documented = docstring_parser.parse(function.__doc__ or '')
        texts = {p.arg_name: p.description or '' for p in documented.params}
        for name, parameter in _parameters(function).items():
            if is_dataclass(parameter.annotation):
                self._add_parameters(parameter.annotation)
                continue
            required = parameter.default is parameter.empty
            settings = _settings(parameter.annotation)
            settings['help'] = ' '.join(texts[name].split()).replace('%', '%%')
            if required and parameter.kind is not parameter.KEYWORD_ONLY:
                self.add_argument(name, **settings)
                continue
            if required:
                settings['required'] = True
            elif settings.get('action') != 'store_true':
                default = parameter.default
                settings['default'] = (
                    list(default) if type(default) is tuple else default
                )
            short = ['-o'] if name == 'output' else []
            self.add_argument(*short, f'--{name.replace("_", "-")}', **settings)


def call(function: Callable[..., T], values: Any) -> T:
    """Call a function with the values that its :class:`Parser` returned."""
    return function(
        **{
            name: call(cast(Any, parameter.annotation), values)
            if is_dataclass(parameter.annotation)
            else values[name]
            for name, parameter in _parameters(function).items()
        }
    )


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function."""
    return inspect.signature(function, eval_str=True).parameters


def _settings(annotation: Any) -> dict[str, Any]:
    """Options of ``add_argument`` for a type."""
    if annotation is bool:
        return {'action': 'store_true'}
    if isinstance(annotation, UnionType):
        # The first: None is a default, and objects are for Python.
        annotation = get_args(annotation)[0]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return {'type': parts[0], 'nargs': len(parts)}
    if origin is Sequence:
        return {'type': parts[0], 'nargs': '+'}
    return {'type': annotation}
