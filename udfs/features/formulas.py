"""A small language for ``where`` and computed values: Python's expressions, a few of them.

::

    type == 'CNP' and amount > 100
    log1p(amount) if country in ('DE', 'FR') else 0
    card_count_5m / card_count_24h

A text is parsed by Python and every node is checked against a list; nothing is ever given to
``eval``. A formula is computed for a whole batch at once, with NumPy. A missing number is NaN, as
in NumPy: arithmetic with it is missing, a comparison with it is false. A missing text equals none.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Kind = Literal["number", "truth", "text"]
FloatArray = npt.NDArray[np.float64]
Column: TypeAlias = "npt.NDArray[Any] | Sequence[str | None]"
Columns: TypeAlias = Mapping[str, Column]
"""By name: float64 (n,), or a list of n texts."""

_MAX_LENGTH = 2_000
_MAX_DEPTH = 50


class FormulaError(ValueError):
    """A formula that cannot be used; the text says where and what to write instead."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A checked part of a formula: what it yields, and how, from the columns and n."""

    kind: Kind
    compute: Callable[[Columns, int], Any]


@dataclass(frozen=True, slots=True)
class Formula:
    """A checked formula.

    Attributes:
        text: As it was written.
        names: The columns it reads, in the order of their first use.
        kind: What it yields.
    """

    text: str
    names: tuple[str, ...]
    kind: Kind
    _root: _Node

    def numbers(self, columns: Columns, n: int) -> FloatArray:
        """The value of each row, a truth as 0 and 1; float64 (n,)."""
        with np.errstate(all="ignore"):
            values = self._root.compute(columns, n)
        return np.array(np.broadcast_to(values, (n,)), np.float64)

    def finite(self, columns: Columns, n: int) -> FloatArray:
        """As ``numbers``, with what is infinite as missing: no log of 0 is summed up or scored."""
        values = self.numbers(columns, n)
        values[np.isinf(values)] = np.nan
        return values

    def truths(self, columns: Columns, n: int) -> npt.NDArray[np.bool_]:
        """Whether it holds for each row, bool (n,)."""
        with np.errstate(all="ignore"):
            values = self._root.compute(columns, n)
        return np.array(np.broadcast_to(values, (n,)), np.bool_)


Function: TypeAlias = Callable[..., Any]
_FUNCTIONS: dict[str, tuple[int, Function]] = {
    "abs": (1, np.abs),
    "ceil": (1, np.ceil),
    "exp": (1, np.exp),
    "floor": (1, np.floor),
    "log": (1, np.log),
    "log1p": (1, np.log1p),
    "log10": (1, np.log10),
    "round": (1, np.rint),
    "sqrt": (1, np.sqrt),
    "sign": (1, np.sign),
    "min": (-2, lambda *values: _reduced(np.minimum, values)),
    "max": (-2, lambda *values: _reduced(np.maximum, values)),
    "if_missing": (2, lambda value, other: np.where(np.isnan(value), other, value)),
}
_ARITHMETIC: dict[type[ast.operator], Function] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
    ast.Pow: np.power,
}
_COMPARISONS: dict[type[ast.cmpop], Function] = {
    ast.Eq: np.equal,
    # Not np.not_equal, which holds for NaN: a comparison with a missing value is false.
    ast.NotEq: lambda a, b: np.less(a, b) | np.greater(a, b),
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}


def _reduced(function: Function, values: tuple[Any, ...]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return result


@lru_cache(maxsize=1_024)
def _parsed(text: str, kinds: tuple[tuple[str, Kind], ...]) -> Formula:
    return _Parser(text, dict(kinds)).formula()


def parse(text: str, kinds: Mapping[str, Kind]) -> Formula:
    """Check a formula.

    Args:
        text: The formula.
        kinds: The columns it may read, by name.

    Raises:
        FormulaError: it is not one, reads what is not there, or mixes numbers and texts.
    """
    return _parsed(text, tuple(kinds.items()))


class _Parser:
    def __init__(self, text: str, kinds: Mapping[str, Kind]) -> None:
        self._text = text
        self._kinds = kinds
        self._names: dict[str, None] = {}

    def formula(self) -> Formula:
        if len(self._text) > _MAX_LENGTH:
            raise FormulaError(f"a formula has at most {_MAX_LENGTH} characters")
        try:
            tree = ast.parse(self._text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
            at = getattr(exc, "offset", None)
            where = f" at character {at}" if at else ""
            reason = getattr(exc, "msg", None) or str(exc)
            raise FormulaError(f"{self._text!r} is no formula{where}: {reason}") from exc
        root = self._node(tree, 0)
        return Formula(self._text, tuple(self._names), root.kind, root)

    def _fail(self, node: ast.AST, message: str) -> FormulaError:
        part = ast.get_source_segment(self._text.strip(), node) or self._text
        return FormulaError(f"{part!r} {message}")

    def _node(self, node: ast.expr, depth: int) -> _Node:
        if depth > _MAX_DEPTH:
            raise FormulaError(f"a formula is nested at most {_MAX_DEPTH} deep")
        handler = _HANDLERS.get(type(node))
        if handler is None:
            raise self._fail(node, f"is not allowed in a formula; allowed are {_ALLOWED}")
        return handler(self, node, depth + 1)

    def _of_kind(self, node: ast.expr, depth: int, kind: Kind) -> _Node:
        found = self._node(node, depth)
        if found.kind == kind or (kind == "number" and found.kind == "truth"):
            return found
        raise self._fail(node, f"is a {found.kind}, but a {kind} is needed here")

    def _name(self, node: ast.Name, depth: int) -> _Node:
        name = node.id
        if name not in self._kinds:
            known = ", ".join(self._kinds) or "none"
            raise FormulaError(f"no column {name!r}; there are {known}")
        self._names[name] = None
        kind = self._kinds[name]
        if kind == "truth":  # kept as 0, 1 and NaN
            return _Node("truth", lambda columns, n: np.equal(_float(columns[name]), 1.0))
        return _Node(kind, lambda columns, n: columns[name])

    def _constant(self, node: ast.Constant, depth: int) -> _Node:
        value = node.value
        if isinstance(value, bool):
            return _Node("truth", lambda columns, n: value)
        if isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                raise self._fail(node, "is too large for a number") from None
            return _Node("number", lambda columns, n: number)
        if isinstance(value, str):
            return _Node("text", lambda columns, n: value)
        raise self._fail(node, "is no number, text, True or False")

    def _binary(self, node: ast.BinOp, depth: int) -> _Node:
        function = _ARITHMETIC.get(type(node.op))
        if function is None:
            raise self._fail(node, "is not allowed: use + - * / // % **")
        a = self._of_kind(node.left, depth, "number").compute
        b = self._of_kind(node.right, depth, "number").compute
        return _Node(
            "number", lambda columns, n: function(_float(a(columns, n)), _float(b(columns, n)))
        )

    def _unary(self, node: ast.UnaryOp, depth: int) -> _Node:
        if isinstance(node.op, ast.Not):
            truth = self._of_kind(node.operand, depth, "truth").compute
            return _Node("truth", lambda columns, n: np.logical_not(truth(columns, n)))
        if isinstance(node.op, ast.USub | ast.UAdd):
            sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
            value = self._of_kind(node.operand, depth, "number").compute
            return _Node("number", lambda columns, n: sign * _float(value(columns, n)))
        raise self._fail(node, "is not allowed: use not or -")

    def _logic(self, node: ast.BoolOp, depth: int) -> _Node:
        parts = [self._of_kind(value, depth, "truth").compute for value in node.values]
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return _Node(
            "truth", lambda columns, n: _reduced(join, tuple(p(columns, n) for p in parts))
        )

    def _choice(self, node: ast.IfExp, depth: int) -> _Node:
        test = self._of_kind(node.test, depth, "truth").compute
        a = self._of_kind(node.body, depth, "number").compute
        b = self._of_kind(node.orelse, depth, "number").compute
        return _Node(
            "number",
            lambda columns, n: np.where(
                test(columns, n), _float(a(columns, n)), _float(b(columns, n))
            ),
        )

    def _compare(self, node: ast.Compare, depth: int) -> _Node:
        """Each operand is computed once, whatever stands on both sides of it."""
        if any(isinstance(op, ast.In | ast.NotIn) for op in node.ops):
            if len(node.ops) > 1:
                raise self._fail(node, "chains `in` with another comparison: use and")
            return _Node(
                "truth", self._membership(node.ops[0], node.left, node.comparators[0], depth)
            )
        operands = [node.left, *node.comparators]
        nodes = [self._node(operand, depth) for operand in operands]
        pairs = [
            self._comparison(op, operands[i : i + 2], nodes[i : i + 2])
            for i, op in enumerate(node.ops)
        ]

        def compute(columns: Columns, n: int) -> Any:
            values = [part.compute(columns, n) for part in nodes]
            found = tuple(pair(values[i], values[i + 1]) for i, pair in enumerate(pairs))
            return _reduced(np.logical_and, found)

        return _Node("truth", compute)

    def _comparison(
        self, op: ast.cmpop, operands: list[ast.expr], nodes: list[_Node]
    ) -> Callable[[Any, Any], Any]:
        (left, right), (a, b) = operands, nodes
        function = _COMPARISONS.get(type(op))
        if function is None:
            raise self._fail(left, "is compared by `is`, which is not allowed: use ==")
        if "text" not in (a.kind, b.kind):
            return lambda x, y: function(_float(x), _float(y))
        if a.kind != b.kind:
            raise self._fail(right, f"is a {b.kind} and is compared with a {a.kind}")
        if not isinstance(op, ast.Eq | ast.NotEq):
            raise self._fail(left, "is a text: compare it with ==, != or in")
        negated = isinstance(op, ast.NotEq)
        return lambda x, y: _texts_equal(x, y, negated)

    def _membership(
        self, op: ast.cmpop, left: ast.expr, right: ast.expr, depth: int
    ) -> Callable[[Columns, int], Any]:
        if not isinstance(right, ast.Tuple | ast.List) or not right.elts:
            raise self._fail(right, "must be a list of constants, as in: x in ('a', 'b')")
        constants = [e.value for e in right.elts if isinstance(e, ast.Constant)]
        value = self._node(left, depth)
        wanted: tuple[type, ...] = (str,) if value.kind == "text" else (int, float)
        if len(constants) != len(right.elts) or not all(isinstance(c, wanted) for c in constants):
            raise self._fail(right, f"must hold constants of {left_kind(value.kind)}s alone")
        negated = isinstance(op, ast.NotIn)
        if value.kind == "text":
            members = frozenset(constants)
            return lambda columns, n: _texts_in(value.compute(columns, n), members, negated)
        try:
            numbers = np.array(constants, np.float64)
        except OverflowError:
            raise self._fail(right, "holds a number that is too large") from None

        def compute(columns: Columns, n: int) -> Any:
            x = _float(value.compute(columns, n))
            return (np.isin(x, numbers) != negated) & ~np.isnan(x)

        return compute

    def _call(self, node: ast.Call, depth: int) -> _Node:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "is_missing":
            return self._is_missing(node, depth)
        if name not in _FUNCTIONS or node.keywords:
            known = ", ".join([*_FUNCTIONS, "is_missing"])
            raise self._fail(node, f"is no function of the language; there are {known}")
        wanted, function = _FUNCTIONS[name]
        if len(node.args) != wanted and not (wanted < 0 and len(node.args) >= -wanted):
            count = f"at least {-wanted}" if wanted < 0 else str(wanted)
            raise self._fail(node, f"takes {count} values, not {len(node.args)}")
        arguments = [self._of_kind(a, depth, "number").compute for a in node.args]
        return _Node(
            "number",
            lambda columns, n: function(*(_float(a(columns, n)) for a in arguments)),
        )

    def _is_missing(self, node: ast.Call, depth: int) -> _Node:
        if len(node.args) != 1 or node.keywords:
            raise self._fail(node, "takes one value")
        argument = node.args[0]
        if isinstance(argument, ast.Name) and self._kinds.get(argument.id) == "truth":
            self._names[argument.id] = None
            name = argument.id
            return _Node("truth", lambda columns, n: np.isnan(np.asarray(columns[name])))
        value = self._node(argument, depth)
        if value.kind == "text":
            return _Node("truth", lambda columns, n: _texts_missing(value.compute(columns, n)))
        return _Node("truth", lambda columns, n: np.isnan(_float(value.compute(columns, n))))


def left_kind(kind: Kind) -> str:
    """A kind in an error's words."""
    return "text" if kind == "text" else "number"


def _float(values: Any) -> Any:
    return np.asarray(values, np.float64)


def _texts_equal(a: Any, b: Any, negated: bool) -> Any:
    """Texts, or one text, compared; a missing one neither equals nor differs."""
    if isinstance(a, str) and isinstance(b, str):
        return (a == b) != negated
    if isinstance(a, str):
        a, b = b, a
    if isinstance(b, str):
        return np.array([x is not None and (x == b) != negated for x in a], np.bool_)
    pairs = zip(a, b, strict=True)
    return np.array(
        [x is not None and y is not None and (x == y) != negated for x, y in pairs], np.bool_
    )


def _texts_in(values: Any, members: frozenset[Any], negated: bool) -> Any:
    if isinstance(values, str):
        return (values in members) != negated
    return np.array([x is not None and (x in members) != negated for x in values], np.bool_)


def _texts_missing(values: Any) -> Any:
    if isinstance(values, str):
        return False
    return np.array([x is None for x in values], np.bool_)


_HANDLERS: dict[type[ast.expr], Callable[[_Parser, Any, int], _Node]] = {
    ast.Name: _Parser._name,
    ast.Constant: _Parser._constant,
    ast.BinOp: _Parser._binary,
    ast.UnaryOp: _Parser._unary,
    ast.BoolOp: _Parser._logic,
    ast.IfExp: _Parser._choice,
    ast.Compare: _Parser._compare,
    ast.Call: _Parser._call,
}
_ALLOWED = "names, numbers, texts, + - * / // % **, comparisons, in, and, or, not, if else, calls"
