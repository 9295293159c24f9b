# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Formulas of spectral indices: arithmetic over named bands, and nothing else.

A formula is text, perhaps a stranger's. It is cut into numbers, names, ``+ - * / **``
and brackets, and refused if anything is left; it is then parsed, once, into Python's
syntax tree, and every node is checked against a whitelist. Nothing is ever evaluated by
Python itself.
"""

import ast
import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ('Formula',)

_REMEDY = 'Use numbers, band names, + - * / ** and brackets.'

#: Denominators smaller than this in magnitude leave an index undefined, hence 0.
SAFE_DENOMINATOR = 1e-6

_MAX_LENGTH = 1000
_MAX_NODES = 500
_MAX_NUMBER = 1e9
_MAX_EXPONENT = 10.0

#: All that a formula is made of. ASCII alone: Python takes other letters for these.
_WORDS = re.compile(
    r"""(?>
        [ \t]+
        | (?>\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])
        | [A-Za-z]\w*
        | [-+*/()]
    )*+""",
    re.ASCII | re.VERBOSE,
)

_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)


class Formula:
    """An arithmetic formula over named tensors.

    Division is safe: where a denominator's magnitude is under 1e-6, and where a root is
    taken of a negative number, the result is 0, and so is its gradient.

    Example:
        >>> import torch
        >>> formula = Formula('(nir - red) / (nir + red)')
        >>> formula.names
        ('nir', 'red')
        >>> formula({'nir': torch.tensor(0.6), 'red': torch.tensor(0.2)})
        tensor(0.5000)
    """

    def __init__(self, text: str) -> None:
        """Initialize a new Formula instance.

        Args:
            text: The formula, for example ``'(nir - red) / (nir + red)'``.

        Raises:
            ValueError: If *text* is anything but arithmetic over names, or too large.
        """
        self.text = text
        if len(text) > _MAX_LENGTH:
            raise ValueError(
                f'formula: {len(text)} characters are more than {_MAX_LENGTH}.'
            )
        known = _WORDS.match(text)
        if known is None or known.end() < len(text):
            place = known.end() if known else 0
            raise ValueError(
                f'formula: {text[:60]!r} holds {text[place : place + 10]!r}, which is '
                f'not allowed. {_REMEDY}'
            )
        try:
            tree = ast.parse(text.strip(), mode='eval').body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise ValueError(
                f'formula: {text[:60]!r} is not arithmetic: {error}. {_REMEDY}'
            ) from error
        nodes = list(ast.walk(tree))
        if len(nodes) > _MAX_NODES:
            raise ValueError(
                f'formula: {len(nodes)} terms and operators are more than {_MAX_NODES}.'
            )
        for node in nodes:
            self._check(node)
        self._tree = tree
        for node in nodes:
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
                self._check_exponent(node.right)
        names = (node.id for node in nodes if isinstance(node, ast.Name))
        #: Names of the variables, in alphabetical order.
        self.names: tuple[str, ...] = tuple(sorted(set(names)))

    def __call__(self, values: Mapping[str, Tensor | float]) -> Tensor:
        """Compute the formula.

        Args:
            values: A tensor (all of one shape) or number for every name.

        Returns:
            The result, in the shape of the tensors.
        """
        return torch.as_tensor(self._evaluate(self._tree, values))

    def substitute(self, replacements: Mapping[str, str]) -> str:
        """Write the formula with other names.

        Args:
            replacements: New text for some of the names: a name, or a number.

        Returns:
            The new formula.

        Raises:
            ValueError: If the result is not a formula.
        """
        tree = ast.parse(self.text.strip(), mode='eval')
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                node.id = replacements.get(node.id, node.id)
        return Formula(ast.unparse(tree)).text

    def __repr__(self) -> str:
        """Write the formula."""
        return f'Formula({self.text!r})'

    def _check(self, node: ast.AST) -> None:
        """Refuse every node that is not on the whitelist."""
        match node:
            case ast.BinOp() | ast.UnaryOp() | ast.Name():
                return
            case ast.Constant(value=int() | float() as value) if (
                not isinstance(value, bool) and abs(value) <= _MAX_NUMBER
            ):
                return
            case ast.Load() | ast.UAdd() | ast.USub():
                return
            case ast.operator() if isinstance(node, _OPERATORS):
                return
        name = type(node).__name__
        raise ValueError(
            f'formula: {self.text[:60]!r} holds a {name}, which is not allowed. '
            f'{_REMEDY}'
        )

    def _check_exponent(self, node: ast.expr) -> None:
        """Refuse an exponent that is out of range, if that can be told already."""
        if not any(isinstance(part, ast.Name) for part in ast.walk(node)):
            self._power(1.0, self._evaluate(node, {}))

    def _evaluate(
        self, node: ast.expr, values: Mapping[str, Tensor | float]
    ) -> Tensor | float:
        """Compute a checked node."""
        match node:
            case ast.Constant(value=int() | float() as value):
                return float(value)
            case ast.Name(id=name):
                return values[name]
            case ast.UnaryOp(op=op, operand=operand):
                result = self._evaluate(operand, values)
                return -result if isinstance(op, ast.USub) else result
            case ast.BinOp(left=left, op=op, right=right):
                a, b = self._evaluate(left, values), self._evaluate(right, values)
                match op:
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult():
                        return a * b
                    case ast.Div():
                        return _divide(a, b)
                    case ast.Pow():
                        return self._power(a, b)
        raise AssertionError(f'{node} passed the whitelist')  # pragma: no cover

    def _power(self, base: Tensor | float, exponent: Tensor | float) -> Tensor:
        """Raise to a constant power; 0 where that is undefined."""
        # Not a number is not below the limit either.
        if isinstance(exponent, Tensor) or not abs(exponent) <= _MAX_EXPONENT:
            raise ValueError(
                f'formula: an exponent in {self.text[:60]!r} is not a number between '
                f'{-_MAX_EXPONENT:g} and {_MAX_EXPONENT:g}.'
            )
        base = torch.as_tensor(base)
        undefined = torch.zeros_like(base, dtype=torch.bool)
        if not float(exponent).is_integer():
            undefined |= base < 0
        if exponent < 0:
            undefined |= base.abs() < SAFE_DENOMINATOR
        power = torch.where(undefined, 1.0, base) ** exponent
        return torch.where(undefined, 0.0, power)


def _divide(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """Divide; 0, with zero gradient, where the denominator is tiny."""
    if not isinstance(b, Tensor):
        return a / b if abs(b) >= SAFE_DENOMINATOR else a * 0.0
    undefined = b.abs() < SAFE_DENOMINATOR
    return torch.where(undefined, 0.0, a / torch.where(undefined, 1.0, b))
