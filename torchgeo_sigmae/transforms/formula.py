# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Formulas of spectral indices: arithmetic over named bands.

The text is parsed once into Python's syntax tree, every node is checked against a
whitelist, and the tree is computed with tensors. Python never evaluates the text.
"""

import ast
import operator
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ('Formula',)

Value = Tensor | float

#: Division by a smaller magnitude is undefined: the result is 0.
SAFE_DENOMINATOR = 1e-6

#: Larger numbers make no sense in an index, and may not fit into a float.
_MAX_NUMBER = 1e9


class Formula:
    """An arithmetic formula over named tensors.

    Allowed are numbers, names, ``+ - * / **``, signs and parentheses. The result is 0,
    and so is its gradient, where a denominator's magnitude is under 1e-6 and where a
    root is taken of a negative number.

    Example:
        >>> import torch
        >>> formula = Formula('(nir - red) / (nir + red)')
        >>> formula.names
        ('nir', 'red')
        >>> formula({'nir': torch.tensor(0.6), 'red': torch.tensor(0.2)})
        tensor(0.5000)
    """

    def __init__(self, text: str) -> None:
        """Parse a formula, for example ``'(nir - red) / (nir + red)'``."""
        self.text = text
        try:
            self._tree = ast.parse(text.strip(), mode='eval').body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise self._refused(f'cannot be parsed: {error}') from error
        names = set()
        for node in ast.walk(self._tree):
            if type(node) not in _ALLOWED:
                raise self._refused(f'contains {type(node).__name__}')
            if isinstance(node, ast.Constant) and not _is_number(node.value):
                raise self._refused(f'contains {str(node.value)[:20]!r}')
            if isinstance(node, ast.Name):
                names.add(node.id)
        #: Names of the variables, in alphabetical order.
        self.names: tuple[str, ...] = tuple(sorted(names))

    def __call__(self, values: Mapping[str, Value]) -> Tensor:
        """Compute the formula of a tensor (all of one shape) or number by name."""
        return torch.as_tensor(_evaluate(self._tree, values))

    def substitute(self, replacements: Mapping[str, str]) -> str:
        """Write the formula with new text, a name or number, for some of its names."""
        tree = ast.parse(self.text.strip(), mode='eval')
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                node.id = replacements.get(node.id, node.id)
        return Formula(ast.unparse(tree)).text

    def _refused(self, reason: str) -> ValueError:
        return ValueError(
            f'formula: {self.text[:60]!r} {reason}. Use only numbers up to '
            f'{_MAX_NUMBER:g}, band names, + - * / ** and parentheses.'
        )


def _is_number(value: object) -> bool:
    """Return whether a constant is a number (Python counts booleans as integers)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _MAX_NUMBER


def _evaluate(node: ast.expr, values: Mapping[str, Value]) -> Value:
    """Compute a checked node."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=sign, operand=operand):
            result = _evaluate(operand, values)
            return -result if isinstance(sign, ast.USub) else result
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](
                _evaluate(left, values), _evaluate(right, values)
            )
    raise AssertionError(f'{node} passed the whitelist')  # pragma: no cover


def _divide(a: Value, b: Value) -> Value:
    """Divide; 0, with zero gradient, where the denominator is tiny."""
    if not isinstance(b, Tensor):
        return a / b if abs(b) >= SAFE_DENOMINATOR else a * 0.0
    undefined = b.abs() < SAFE_DENOMINATOR
    return torch.where(undefined, 0.0, a / torch.where(undefined, 1.0, b))


def _power(base: Value, exponent: Value) -> Tensor:
    """Raise to a constant power; 0, with zero gradient, where that is undefined."""
    if isinstance(exponent, Tensor) and exponent.ndim:
        raise ValueError('formula: an exponent depends on a band. Use a number.')
    base, exponent = torch.as_tensor(base), float(exponent)
    undefined = torch.zeros_like(base, dtype=torch.bool)
    if not exponent.is_integer():
        undefined |= base < 0
    if exponent < 0:
        undefined |= base.abs() < SAFE_DENOMINATOR
    return torch.where(undefined, 0.0, torch.where(undefined, 1.0, base) ** exponent)


_OPERATORS: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.Pow: _power,
}

_ALLOWED = {
    *(ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.Load, ast.UAdd, ast.USub),
    *_OPERATORS,
}
