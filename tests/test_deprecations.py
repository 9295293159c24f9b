# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What our package calls is not deprecated, or a test fails."""

import os
import subprocess
import sys
import types
from collections.abc import Callable

import pytest
from deprecations import KINDS

LIBRARY = """
import functools, warnings

def old(kind, stacklevel):
    warnings.warn('use new()', kind, stacklevel=stacklevel)

def inside(kind, stacklevel):
    old(kind, stacklevel)
"""

OURS = """
def call(function, *arguments):
    function(*arguments)
"""


def module(name: str, code: str) -> types.ModuleType:
    made = types.ModuleType(name)
    exec(code, made.__dict__)
    return made


@pytest.fixture
def library() -> types.ModuleType:
    return module('somebodys', LIBRARY)


@pytest.fixture
def call() -> Callable[..., None]:
    """A function of our package, as far as its name goes."""
    return module('torchgeo_sigmae.made_up', OURS).call


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('stacklevel', [1, 2, 3])
@pytest.mark.parametrize('name', ['old', 'inside'])
def test_a_deprecated_call_of_ours_fails_wherever_the_warning_points(
    library: types.ModuleType, call: Callable[..., None], kind: type[Warning],
    stacklevel: int, name: str,
) -> None:  # fmt: skip
    with pytest.raises(kind, match='use new'):
        call(getattr(library, name), kind, stacklevel)


def test_calls_of_others_warn_where_they_would(library: types.ModuleType) -> None:
    with pytest.warns(DeprecationWarning, match='use new') as caught:
        library.old(DeprecationWarning, 2)
    assert caught[0].filename == __file__
    # Another library stands between us and the one that warns.
    other = module('another', OURS)
    with pytest.warns(FutureWarning) as caught:
        module('torchgeo_sigmae.made_up', OURS).call(
            other.call, library.old, FutureWarning, 1
        )
    assert len(caught) == 1


def test_warnings_that_are_no_deprecations_are_left_alone(
    library: types.ModuleType, call: Callable[..., None]
) -> None:
    with pytest.warns(UserWarning, match='use new'):
        call(library.old, UserWarning, 1)


def test_a_decorator_warns_for_the_function() -> None:
    code = 'from typing_extensions import deprecated\n'
    code += '@deprecated("use new()")\ndef old(): ...\n' + OURS
    library = module('somebodys', code)
    with pytest.raises(DeprecationWarning, match='use new'):
        module('torchgeo_sigmae.made_up', OURS).call(library.old)
    # What a library calls of another is its own affair, though we called the library.
    with pytest.warns(DeprecationWarning, match='use new'):
        module('torchgeo_sigmae.made_up', OURS).call(library.call, library.old)


def test_another_python_fails_too() -> None:
    code = 'import warnings; warnings.warn("x", {}, stacklevel=1)'
    ours = f'g = dict(__name__="torchgeo_sigmae.bands"); exec({code!r}, g)'
    for kind, text in zip(KINDS, (code, ours, ours), strict=True):
        done = subprocess.run(
            [sys.executable, '-c', text.format(kind.__name__)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1, text
        assert f'{kind.__name__}: x' in done.stderr
    assert 'torchgeo_sigmae.masking.noise' in os.environ['PYTHONWARNINGS']
