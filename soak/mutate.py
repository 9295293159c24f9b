# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Small mistakes made on purpose in a module's source, one at a time.

Not a tool from PyPI, because mutmut 3 changes functions only (half of ``bands`` and
``registry`` are tables) and cosmic-ray starts a process for every mutant, which imports
torch for seconds before it tests for one.

Not changed: docstrings, annotations, imports, ``__all__``, prose (strings with a space)
and what is inside a ``raise`` or a warning.
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from types import CodeType
from typing import Any, NamedTuple

__all__ = ('Mutant', 'mutants')

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
}  # fmt: skip

_NAMES = {
    'min': 'max', 'amin': 'amax', 'any': 'all', 'sum': 'mean', 'log': 'exp',
    'upper': 'lower', 'setdefault': 'get', 'cos': 'sin', 'round': 'int',
}  # fmt: skip
_NAMES |= {new: old for old, new in _NAMES.items() if new not in ('int', 'get')}


class Mutant(NamedTuple):
    """A module with one mistake.

    Attributes:
        name: Where and what, without a line number: the same after other edits.
        line: Line of the source.
        code: The module, compiled.
    """

    name: str
    line: int
    code: CodeType


def mutants(source: str, path: str) -> Iterator[Mutant]:
    """Make all mutants of a module.

    Args:
        source: Its text.
        path: Its file, for tracebacks.

    Yields:
        One mutant after the other, in the order of the text.
    """
    tree = ast.parse(source)
    modules = {
        alias.asname or alias.name.split('.')[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    counts: Counter[str] = Counter()
    for holder, key, node, scope in _sites(tree, 'module'):
        for new in _changes(node, modules):
            name = f'{scope}: {_short(node)} -> {_short(new)}'
            counts[name] += 1
            if counts[name] > 1:
                name += f' #{counts[name]}'
            _put(holder, key, new)
            code = compile(ast.fix_missing_locations(tree), path, 'exec')
            _put(holder, key, node)
            yield Mutant(name, getattr(node, 'lineno', 0), code)


def _sites(node: ast.AST, scope: str) -> Iterator[tuple[Any, Any, ast.AST, str]]:
    """What may be changed: its holder, its place in it, itself and its scope."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = node.name if scope == 'module' else f'{scope}.{node.name}'
    for field, value in ast.iter_fields(node):
        # Types are for readers.
        if field in ('annotation', 'returns'):
            continue
        places = (
            [(value, i, item) for i, item in enumerate(value)]
            if isinstance(value, list)
            else [(node, field, value)]
        )
        for holder, key, child in places:
            if isinstance(child, ast.AST) and not _left_alone(child):
                yield holder, key, child, scope
                if not isinstance(child, ast.Raise):
                    yield from _sites(child, scope)


def _left_alone(node: ast.AST) -> bool:
    """What a reader or a type checker sees, but not the program."""
    match node:
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr='warn'))):
            return True
        case ast.Assign(targets=[ast.Name(id='__all__')]):
            return True
        case ast.AnnAssign(target=ast.Name(id='__all__')) | ast.AnnAssign(value=None):
            return True
    return False


def _changes(node: ast.AST, modules: set[str]) -> Iterator[ast.AST]:
    """All mistakes that can be made at a node."""
    if type(node) in _SWAPS:
        yield _SWAPS[type(node)]()
    match node:
        case ast.Constant(value=value):
            yield from (ast.Constant(new) for new in _constants(value))
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.If() | ast.IfExp():
            yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.comprehension(ifs=[*tests]) if tests:
            yield _with(node, ifs=[])
        case ast.Return(value=ast.Constant(value=None)):
            pass
        case ast.Return(value=ast.AST()):
            yield ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Name(id=name) if name in _NAMES:
            yield _with(node, id=_NAMES[name])
        case ast.Attribute(attr=name) if name in _NAMES:
            yield _with(node, attr=_NAMES[name])
        case ast.Call():
            yield from _calls(node, modules)


def _constants(value: object) -> Iterator[object]:
    """Other values of the same kind."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value + 1
    elif isinstance(value, str) and ' ' not in value:
        yield f'{value}XX'


def _calls(node: ast.Call, modules: set[str]) -> Iterator[ast.AST]:
    """A call without one of its keywords, and what a method was called on."""
    for i, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        root = owner
        while isinstance(root, ast.Attribute):
            root = root.value
        if not (isinstance(root, ast.Name) and root.id in modules):
            yield owner


def _with(node: ast.AST, **changes: Any) -> ast.AST:
    """A shallow copy with other fields."""
    new = copy.copy(node)
    for field, value in changes.items():
        setattr(new, field, value)
    return new


def _put(holder: Any, key: Any, node: ast.AST) -> None:
    """Set an item of a list or a field of a node."""
    if isinstance(holder, list):
        holder[key] = node
    else:
        setattr(holder, key, node)


def _short(node: ast.AST) -> str:
    """A node in a line."""
    if isinstance(node, ast.operator | ast.cmpop | ast.boolop):
        return type(node).__name__
    if isinstance(node, ast.If):
        return f'if {ast.unparse(node.test)}'
    text = ' '.join(ast.unparse(node).split())
    return text if len(text) <= 90 else f'{text[:60]}...{text[-27:]}'
