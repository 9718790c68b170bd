"""Evaluate the small arithmetic that detectron2's YAML files carry, without Python's ``eval``.

Only the parsed syntax tree is walked: numbers, lists, tuples, ``+ - * / // % **`` and list comprehensions
over lists or ``range(...)``. Everything else (names, calls, attributes, strings) is refused. Work and the
size of results are bounded, so an expression from a stranger cannot hang or fill the memory.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any

MAX_LENGTH = 4096
MAX_ELEMENTS = 8192
MAX_WORK = 100_000
MAX_INTEGER_BITS = 64

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}

Names = dict[str, Any]


class ArithmeticRefusedError(ValueError):
    """The expression is not plain arithmetic, or asks for too much; the message says which."""


def evaluate(expression: str) -> Any:
    """Evaluate an arithmetic expression.

    Args:
        expression: for example ``"[[x, x * 2**(1.0/3)] for x in [32, 64]]"``.

    Returns:
        A number, or a (nested) list; tuples become lists.

    Raises:
        ArithmeticRefusedError: a construct outside arithmetic, a division by zero, or a result out of bounds.
    """
    if len(expression) > MAX_LENGTH:
        raise ArithmeticRefusedError(f"the expression is longer than {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings(action="ignore"):  # the parser's, on style
            tree = ast.parse(expression.strip(), mode="eval")
        return _Evaluator().value(tree.body, {})
    except SyntaxError as error:
        raise ArithmeticRefusedError(f"not an expression: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise ArithmeticRefusedError("the expression is nested too deeply") from error
    except (ArithmeticError, TypeError) as error:
        raise ArithmeticRefusedError(str(error)) from error


class _Evaluator:
    """Walks one expression; ``_work`` counts every value made or visited."""

    def __init__(self) -> None:
        self._work = 0

    def value(self, node: ast.expr, names: Names) -> Any:
        self._charge(1)
        match node:
            case ast.Constant(value=number) if type(number) in (int, float):
                return self._number(number)
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return self._bounded([self.value(element, names) for element in elements])
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
                return self._number(_UNARY[type(sign)](self._numeric(self.value(operand, names))))
            case ast.BinOp():
                return self._binary(node, names)
            case ast.ListComp(elt=element, generators=generators):
                return self._bounded(
                    [self.value(element, scope) for scope in self._scopes(generators, names)]
                )
        raise ArithmeticRefusedError(f"{_describe(node)} is not arithmetic")

    def _binary(self, node: ast.BinOp, names: Names) -> Any:
        function = _BINARY.get(type(node.op))
        if function is None:
            raise ArithmeticRefusedError(f"operator {type(node.op).__name__} is not arithmetic")
        left, right = self.value(node.left, names), self.value(node.right, names)
        if isinstance(left, list) or isinstance(right, list):
            return self._combine(node.op, left, right)
        if isinstance(node.op, ast.Pow):
            _check_power(left, right)
        return self._number(function(left, right))

    def _combine(self, op: ast.operator, left: Any, right: Any) -> list[Any]:
        """List concatenation and repetition."""
        if isinstance(op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return self._bounded(left + right)
        if isinstance(op, ast.Mult):
            rows, times = (left, right) if isinstance(left, list) else (right, left)
            if isinstance(rows, list) and type(times) is int:
                if len(rows) * max(times, 0) > MAX_ELEMENTS:
                    raise ArithmeticRefusedError(f"the result has more than {MAX_ELEMENTS} elements")
                return self._bounded(rows * times)
        raise ArithmeticRefusedError(f"operator {type(op).__name__} does not take these lists")

    def _scopes(self, generators: list[ast.comprehension], names: Names) -> Iterator[Names]:
        """Yield the variables of every round of a comprehension, outermost loop first."""
        if not generators:
            yield names
            return
        first, *rest = generators
        if first.ifs or first.is_async:
            raise ArithmeticRefusedError("a condition in a comprehension is not arithmetic")
        for item in self._iterable(first.iter, names):
            yield from self._scopes(rest, names | _bind(first.target, item))

    def _iterable(self, node: ast.expr, names: Names) -> list[Any]:
        match node:
            case ast.Call(func=ast.Name(id="range"), args=arguments, keywords=[]):
                bounds = [self.value(argument, names) for argument in arguments]
                if not 1 <= len(bounds) <= 3 or any(type(bound) is not int for bound in bounds):
                    raise ArithmeticRefusedError("range takes one to three integers")
                if len(bounds) == 3 and bounds[2] == 0:
                    raise ArithmeticRefusedError("the step of range is zero")
                numbers = range(*bounds)
                if len(numbers) > MAX_ELEMENTS:
                    raise ArithmeticRefusedError(f"range has more than {MAX_ELEMENTS} elements")
                return list(numbers)
        value = self.value(node, names)
        if not isinstance(value, list):
            raise ArithmeticRefusedError("a comprehension runs over a list or a range")
        return value

    def _numeric(self, value: Any) -> Any:
        if isinstance(value, list):
            raise ArithmeticRefusedError("a sign before a list is not arithmetic")
        return value

    def _number(self, value: Any) -> Any:
        if type(value) is int and value.bit_length() <= MAX_INTEGER_BITS:
            return value
        if type(value) is float and value - value == 0:  # neither infinite nor NaN
            return value
        raise ArithmeticRefusedError("a number is out of bounds")

    def _bounded(self, rows: list[Any]) -> list[Any]:
        """Check the size of a list with everything inside it; shared parts count as often as they show."""
        pending, seen = [rows], 0
        while pending:
            part = pending.pop()
            seen += len(part)
            if seen > MAX_ELEMENTS:
                raise ArithmeticRefusedError(f"the result has more than {MAX_ELEMENTS} elements")
            self._charge(len(part))
            pending.extend(item for item in part if isinstance(item, list))
        return rows

    def _charge(self, amount: int) -> None:
        self._work += amount
        if self._work > MAX_WORK:
            raise ArithmeticRefusedError("the expression asks for too much work")


def _check_power(base: Any, exponent: Any) -> None:
    """Refuse an integer power before computing it: ``9**9**9`` would take hours."""
    if type(base) is int and type(exponent) is int and base.bit_length() * exponent > 4 * MAX_INTEGER_BITS:
        raise ArithmeticRefusedError("a power is out of bounds")


def _bind(target: ast.expr, item: Any) -> Names:
    match target:
        case ast.Name(id=name):
            return {name: item}
        case ast.Tuple(elts=targets) | ast.List(elts=targets):
            if not isinstance(item, list) or len(item) != len(targets):
                raise ArithmeticRefusedError("a comprehension unpacks an element of another length")
            bound: Names = {}
            for part, value in zip(targets, item, strict=True):
                bound |= _bind(part, value)
            return bound
    raise ArithmeticRefusedError(f"{_describe(target)} is not a variable")


def _describe(node: ast.expr) -> str:
    text = ast.unparse(node)
    return f"'{text if len(text) <= 60 else text[:57] + '...'}'"
