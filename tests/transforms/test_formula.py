# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import math
import sys
import time
from collections.abc import Callable

import pytest
import torch
from hostile_formulas import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_sigmae.transforms import Formula, SpectralIndex, spectral_indices

VALUES = {name: torch.rand(7) + 0.1 for name in ('a', 'b', 'nir')}


@pytest.mark.parametrize(
    'text',
    [
        'a + b * 2 - nir / 4',
        '-(a - +b) ** 2',
        '((a ** 0.5 + 1.5)) / (b ** -1)',
        '  2.5 * (nir - a) / (nir + 6 * a - 7.5 * b + 1)  ',
        'a ** (1 / 3)',
    ],
)
def test_arithmetic_is_pythons(text: str) -> None:
    # An oracle only a test may use: Python's own evaluation of known text.
    expected = eval(text, {'__builtins__': {}}, VALUES)
    torch.testing.assert_close(Formula(text)(VALUES), expected)


def test_division_and_roots_are_safe() -> None:
    zero = {'a': torch.tensor([0.0, -4.0, 4.0], requires_grad=True)}
    torch.testing.assert_close(Formula('1 / a')(zero), torch.tensor([0.0, -0.25, 0.25]))
    torch.testing.assert_close(Formula('a ** 0.5')(zero), torch.tensor([0.0, 0.0, 2.0]))
    torch.testing.assert_close(
        Formula('a ** -2')(zero), torch.tensor([0.0, 1 / 16, 1 / 16])
    )
    assert Formula('a / 0')(zero).tolist() == [0, 0, 0]
    (Formula('1 / a')(zero) + Formula('a ** -1')(zero)).sum().backward()
    assert zero['a'].grad.isfinite().all()


def test_names_and_text() -> None:
    formula = Formula('(nir - a) / (nir + a)')
    assert formula.names == ('a', 'nir')
    assert repr(formula) == "Formula('(nir - a) / (nir + a)')"
    assert Formula(formula.substitute({'a': '(2.0)'})).names == ('nir',)
    with pytest.raises(ValueError, match='formula: '):
        formula.substitute({'a': 'open("x")'})


@pytest.mark.parametrize(('trick', 'text'), HOSTILE, ids=range(len(HOSTILE)))
def test_anything_else_is_refused_quickly(trick: str, text: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match='formula: ') as error:
        Formula(text)
    # What it takes is measured by soak.numerics: microseconds.
    assert time.process_time() - start < 1, trick
    assert len(str(error.value)) < 400


@pytest.mark.parametrize('name', ['open', 'eval', 'exec', 'exit', 'os', 'torch', 'a_b'])
def test_names_of_builtins_are_names_of_bands_and_nothing_more(name: str) -> None:
    formula = Formula(f'{name} + 1')
    assert formula.names == (name,)
    assert formula({name: torch.tensor(2.0)}).item() == 3
    index = SpectralIndex('X', formula.text, 'none')
    with pytest.raises(ValueError, match='bands: X needs'):
        spectral_indices(torch.rand(1, 2, 2), ['B04'], [index])


@pytest.mark.parametrize(
    'text', ['9 ** 9 ** 9', 'a ** b', '2 ** 1000', 'a ** (0 - 99)']
)
def test_huge_or_variable_exponents_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match='formula: an exponent in'):
        Formula(text)(VALUES)


EVENTS: list[tuple[str, object]] | None = None


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Take down what the interpreter is asked to do, while somebody wants to know."""
    if EVENTS is not None:
        EVENTS.append((event, arguments[:2]))


@pytest.fixture(scope='module')
def watched() -> Callable[[str], list[tuple[str, object]]]:
    """What the interpreter is asked to do when a formula is parsed and computed."""
    sys.addaudithook(watch)

    def parse(text: str) -> list[tuple[str, object]]:
        global EVENTS
        EVENTS = []
        try:
            formula = Formula(text)
            result = formula(dict.fromkeys(formula.names, torch.tensor(0.5)))
        except ValueError:
            result = torch.tensor(0.0)
        finally:
            events, EVENTS = EVENTS, None
        assert isinstance(result, torch.Tensor)
        return events

    return parse


def test_the_watch_sees_what_it_is_to_see(
    watched: Callable[[str], list[tuple[str, object]]],
) -> None:
    global EVENTS
    EVENTS = []
    eval('__import__("os").listdir("/")')
    events, EVENTS = EVENTS, None
    assert {'compile', 'exec', 'os.listdir'} <= {event for event, _ in events}


# Words of the grammar in any order: what gets past the first check is seen, too.
words = st.lists(
    st.sampled_from(
        ['a', 'nir', '1', '.5', '2e3', '+', '-', '*', '/', '**', '(', ')', ' ', 'if ',
         'else ', 'lambda ', 'await ', 'not ', 'is ', 'in ', 'or ', 'yield ', 'True',
         '__import__', 'open', '.', ',', '[', ']', '"', ':=', '@', '\n', '\\']
    ), max_size=15,
).map(''.join)  # fmt: skip


@settings(deadline=None, max_examples=600)
@given(st.text(max_size=60) | words)
def test_no_text_makes_python_do_more_than_parse(
    watched: Callable[[str], list[tuple[str, object]]], text: str
) -> None:
    # ast.parse is "compile" to the interpreter, of no file; it makes no code.
    for event, arguments in watched(text):
        assert event == 'compile'
        assert arguments[1] == '<unknown>'


def test_hostile_texts_make_python_do_no_more_than_parse(
    watched: Callable[[str], list[tuple[str, object]]],
) -> None:
    for _, text in HOSTILE:
        assert {event for event, _ in watched(text)} <= {'compile'}


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet='ab1.+-*/() _[]{}"\'\\:=,@%x', max_size=60))
def test_no_text_does_more_than_arithmetic(text: str) -> None:
    try:
        formula = Formula(text)
    except ValueError:
        return
    known = {name: torch.tensor(0.5) for name in formula.names}
    try:
        result = formula(known)
    except ValueError:
        return
    assert isinstance(result, torch.Tensor)
    assert not math.isinf(float(result)) or '*' in text
