# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
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
    assert formula.text == '(nir - a) / (nir + a)'
    assert Formula(formula.substitute({'a': '(2.0)'})).names == ('nir',)
    with pytest.raises(ValueError, match='formula: '):
        formula.substitute({'a': 'open("x")'})


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('__import__("os").system("true")', 'contains Call'),
        ('a.__class__', 'contains Attribute'),
        ('a[0]', 'contains Subscript'),
        ('a, b', 'contains Tuple'),
        ('[x for x in a]', 'contains ListComp'),
        ('lambda: a', 'contains Lambda'),
        ('a if b else 1', 'contains IfExp'),
        ('a // b', 'contains FloorDiv'),
        ('(a := 1)', 'contains NamedExpr'),
        ('a * "b"', "contains 'b'"),
        ('a + True', "contains 'True'"),
        ('1e400', "contains 'inf'"),
        ('9' * 400, "contains '99999999999999999999'"),
        ('import os', 'cannot be parsed'),
        ('(a', 'cannot be parsed'),
        ('', 'cannot be parsed'),
        ('a\x00', 'cannot be parsed'),
    ],
)
def test_anything_but_arithmetic_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r'^formula: ') as error:
        Formula(text)
    assert reason in str(error.value)
    assert str(error.value).endswith('band names, + - * / ** and parentheses.')


def test_an_exponent_is_a_number() -> None:
    torch.testing.assert_close(Formula('a ** 2 ** 2')(VALUES), VALUES['a'] ** 4)
    with pytest.raises(ValueError, match='formula: an exponent depends on a band'):
        Formula('a ** b')(VALUES)


def test_names_of_builtins_are_names_of_bands() -> None:
    formula = Formula('open + 1')
    assert formula({'open': torch.tensor(2.0)}).item() == 3
    index = SpectralIndex('X', formula.text, 'none')
    with pytest.raises(ValueError, match='bands: X needs'):
        spectral_indices(torch.rand(1, 2, 2), ['B04'], [index])


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet='ab1.+-*/() _[]{}"\'\\:=,@%x', max_size=60))
def test_any_text_is_arithmetic_or_refused(text: str) -> None:
    try:
        formula = Formula(text)
    except ValueError:
        return
    result = formula({name: torch.tensor(0.5) for name in formula.names})
    assert result.shape == ()
