"""The sweep in a Python script or notebook, as its dicts and assignments leave it. Nothing of it is run."""

import ast
import json
import math
import operator
import re
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, ValuesView
from contextlib import suppress
from typing import Any

_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: lambda base, power: _small(base) ** _small(power),
}  # fmt: skip
# Lines of notebooks that are no Python, such as !pip install, with those that they go on in.
_MAGIC = re.compile(r"^(\s*)(\w+\s*=\s*)?([!%]|pip3? |cd )(?:[^\n]*\\\n)*[^\n]*$", re.MULTILINE)
_LOGARITHM = re.compile(r"(?:(?:math|np|numpy)\.)?(log|exp)")
# What lists and dicts are changed by.
_CHANGES = ("append", "extend", "insert", "remove", "pop", "clear", "setdefault", "update", "add", "sort", "reverse")
MOST_ENTRIES = 1000  # of a list that is computed
_Known = dict[str, Any]


_USUAL = {each.__name__: each for each in (int, float, len, min, max, abs, round, sum)}


class Exponent(float):
    """A number that was written as a logarithm."""


class Unread(str):
    """The source of an expression that only running the program would tell."""


def of_notebook(text: str) -> str:
    """The code of a notebook's cells, but for those that are no Python, which had no effect there either."""
    found = json.loads(text)
    cells = found.get("cells") if isinstance(found, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ValueError("it has no cells, as a notebook has")
    cells = [cell for cell in cells if cell.get("cell_type") == "code"]
    return "\n".join(ast.unparse(tree) for cell in cells if (tree := _tree("".join(cell.get("source", "")))))


def of_script(text: str) -> Any:
    """The sweep that a script has; of several the one of most parameters, with the others named. None without one."""
    script = _Script()
    script.run((_tree(text) or ast.parse(text)).body, script.known)  # the second tells why it is none
    return script.sweep() or script.search_space()


def _tree(text: str) -> ast.Module | None:
    """A script without its magics; None of one that is no Python."""
    for code in (text, _MAGIC.sub(r"\1pass", text)):
        with suppress(SyntaxError, ValueError), warnings.catch_warnings(action="ignore"):
            return ast.parse(code)
    return None


class _Script:
    """What is known of a script's names, and the dicts that stand in it with their lines."""

    def __init__(self) -> None:
        self.known: _Known = {}
        self.made: list[tuple[int, dict[Any, Any]]] = []
        self.counts: set[int] = set()  # of runs, as agents are told
        self.seen: set[int] = set()  # dicts of the source that are in `made` already
        # In what may never run: the lists and dicts from before it, the names from before it, whether it may run often.
        self.before: dict[int, Any] = {}
        self.firm: _Known = {}
        self.loop = False
        self.doubts: list[tuple[Any, str, str]] = []  # what it changes: a list or dict, the line, the source

    def run(self, body: Sequence[ast.stmt], known: _Known) -> None:
        """Take the statements of one scope in their order; functions last, when all names of the scope are known."""
        functions = []
        for statement in body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                functions.append(statement)
            elif parts := [part for _, part in ast.iter_fields(statement) if part and _are_statements(part)]:
                for name in _names(getattr(statement, "target", None)):  # of a loop: it has many values
                    known.pop(name, None)
                for part in parts:
                    inner = [each for one in part for each in ([one] if isinstance(one, ast.stmt) else one.body)]
                    self.branch(part[0] if isinstance(part[0], ast.ExceptHandler) else statement, inner, known)
            else:
                self.take(statement, known)
        for function in functions:
            hidden = {each.arg for each in ast.walk(function) if isinstance(each, ast.arg)}
            self.branch(
                function, function.body, {name: value for name, value in known.items() if name not in hidden}, {}
            )

    def branch(self, of: ast.AST, body: Sequence[ast.stmt], known: _Known, firm: _Known | None = None) -> None:
        """Take the statements in another one, which may never run or often; `firm` are the names from outside."""
        whole = isinstance(of, (ast.With, ast.Try)) or (isinstance(of, ast.If) and "__name__" in ast.unparse(of.test))
        around = self.before, self.firm, self.loop
        if not whole:
            self.before, self.firm = _inside(known), {**known} if firm is None else firm
            self.loop = isinstance(of, (ast.For, ast.While))
        self.run(body, known)
        self.before, self.firm, self.loop = around

    def take(self, statement: ast.stmt, known: _Known) -> None:
        """Take one statement that has no others in it."""
        match statement:
            case ast.Assign(targets=targets, value=value):
                found = self.value(value, known)
                for target in targets:
                    self.assign(target, found, known)
            case ast.AnnAssign(target=target, value=value) if value:
                self.assign(target, self.value(value, known), known)
            case ast.AugAssign(target=target, op=op, value=value):
                held = self.value(target, known)
                if isinstance(held, (dict, list)) and isinstance(op, (ast.Add, ast.BitOr)):
                    self.change(
                        held, "update" if isinstance(held, dict) else "extend", statement, [self.value(value, known)]
                    )
                else:
                    self.assign(target, self.value(ast.BinOp(target, op, value), known), known)
            case ast.Delete(targets=targets):
                for target in targets:
                    if isinstance(target, ast.Subscript):
                        self.change(
                            self.value(target.value, known), "pop", statement, [self.value(target.slice, known)]
                        )
        for node in ast.walk(statement):
            match node:
                case ast.Call(func=ast.Attribute(value=changed, attr=way)) if way in _CHANGES:
                    more = [self.value(each, known) for each in node.args]
                    self.change(self.value(changed, known), way, node, more, self.keywords(node, known))
                case ast.Call(func=ast.Attribute(attr="agent")):
                    count = self.keywords(node, known).get("count")
                    self.counts |= {count} if isinstance(count, int) else set()
            if isinstance(node, (ast.Dict, ast.Call)) and id(node) not in self.seen:
                self.value(node, known)

    def change(self, held: Any, way: str, by: ast.AST, args: Sequence[Any], more: Mapping[str, Any] = {}) -> None:
        """Change a list or dict as its method of this name does; what is not known stands in it as its source."""
        if not isinstance(held, (dict, list)):
            return
        source = Unread(ast.unparse(by))
        try:
            if self.loop and isinstance(held, list) and id(held) in self.before:
                raise TypeError
            self.doubt(held, by, "taken")
            getattr(held, way)(*args, **more)
        except (LookupError, ValueError, TypeError, AttributeError):
            held.append(source) if isinstance(held, list) else held.update({source: source})

    def doubt(self, held: Any, by: ast.AST, done: str) -> None:
        """Remember that what may never run changes what was there before."""
        if id(held) in self.before:
            self.doubts.append((held, f"{done}, line {getattr(by, 'lineno', 0)}", ast.unparse(by)))

    def assign(self, target: ast.expr, value: Any, known: _Known) -> None:
        """Give a name, an attribute or an entry of a dict a value."""
        if isinstance(target, ast.Subscript) and isinstance(held := self.value(target.value, known), dict):
            key = found if isinstance(found := self.value(target.slice, known), Hashable) else ast.unparse(target.slice)
            if id(held) in self.before and held.get(key, value) != value:
                self.doubt(held, target, "not taken")
            else:
                self.doubt(held, target, "taken")
                held[key] = value
        elif isinstance(target, ast.Subscript) and isinstance(held := self.value(target.value, known), list):
            at = self.value(target.slice, known)
            is_there = isinstance(at, int) and -len(held) <= at < len(held)
            if id(held) in self.before or not is_there:
                self.doubt(held, target, "not taken")
            else:
                held[at] = value
        elif isinstance(target, ast.Tuple):
            values = (
                value
                if isinstance(value, list) and len(value) == len(target.elts)
                else [Unread("?")] * len(target.elts)
            )
            for part, each in zip(target.elts, values, strict=True):
                self.assign(part, each, known)
        else:
            name = ast.unparse(target)
            same = isinstance(value, dict) or self.firm.get(name, value) == value
            known[name] = value if same else Unread(name)  # of two values none is known

    def keywords(self, call: ast.Call, known: _Known) -> dict[str, Any]:
        return {each.arg: self.value(each.value, known) for each in call.keywords if each.arg}

    def value(self, node: ast.expr, known: Mapping[str, Any]) -> Any:
        """What an expression says as it stands; of one that would have to be run its source."""
        self.seen.add(id(node))
        try:
            found = self._value(node, dict(known) if not isinstance(known, dict) else known)
        except (
            ArithmeticError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            SyntaxError,
            RecursionError,
        ):
            found = Unread(ast.unparse(node))
        return found

    def _value(self, node: ast.expr, known: _Known) -> Any:
        match node:
            case ast.Dict(keys=keys, values=values):
                made: dict[Any, Any] = {}
                for key, value in zip(keys, values, strict=True):
                    held = self.value(value, known)
                    made |= {self.value(key, known): held} if key else held if isinstance(held, dict) else {held: held}
                self.made.append((node.lineno, made))
                return made
            case ast.Call(func=ast.Name(id="dict"), args=args):
                made = {}
                for each in args:
                    made |= self.value(each, known)
                made |= self.keywords(node, known)
                self.made.append((node.lineno, made))
                return made
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
                return [self.value(part, known) for part in parts]
            case ast.ListComp(elt=each, generators=[ast.comprehension(target=ast.Name(id=name), iter=of, ifs=[])]):
                found = [self.value(each, {**known, name: value}) for value in _list(self.value(of, known))]
                return found if not any(isinstance(value, Unread) for value in found) else Unread(ast.unparse(node))
            case ast.Call(func=ast.Name(id="list" | "tuple" | "sorted"), args=[of], keywords=[]):
                return _list(self.value(of, known))
            case ast.Call(func=ast.Name(id="range"), args=args, keywords=[]):
                return _list(range(*(self.value(each, known) for each in args)))
            case ast.Call(func=ast.Name() | ast.Attribute() as called, args=[of], keywords=[]) if (
                said := _LOGARITHM.fullmatch(ast.unparse(called))
            ):
                number = _number(self.value(of, known))
                return Exponent(math.log(number)) if said[1] == "log" else math.exp(number)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _USUAL:
                taken = [self.value(each, known) for each in args]
                if any(
                    isinstance(part, Unread) for each in taken for part in (each if isinstance(each, list) else [each])
                ):
                    raise TypeError
                return _USUAL[name](*taken)
            case ast.BinOp(left=left, op=op, right=right):
                one, other = self.value(left, known), self.value(right, known)
                if isinstance(one, list):  # [3] * 5, [3] + [5]
                    is_sum = isinstance(op, ast.Add)
                    _list(range(len(one) + len(_list(other)) if is_sum else len(one) * other))  # not too many
                    return one + _list(other) if is_sum else one * other
                return _OPERATIONS[type(op)](_number(one), _number(other))
            case ast.Subscript(value=of, slice=at):
                return self.value(of, known)[self.value(at, known)]
            case ast.Name() | ast.Attribute():
                return known[ast.unparse(node)]
            case ast.JoinedStr(values=parts):
                return "".join(
                    _text(self.value(part.value if isinstance(part, ast.FormattedValue) else part, known))
                    for part in parts
                )
        return ast.literal_eval(node)

    def sweep(self) -> dict[Any, Any] | None:
        """The W&B sweep of most parameters."""
        found = [
            (line, each) for line, each in self.made if isinstance(each.get("parameters"), dict) and each["parameters"]
        ]
        inner = set().union(*(_inside(each["parameters"].values()) for _, each in found))  # groups of its parameters
        found = [(line, each) for line, each in found if id(each) not in inner]
        if not found:
            return None
        best = max(range(len(found)), key=lambda at: (len(found[at][1]["parameters"]), at))
        count = {"run_cap": self.counts.copy().pop()} if len(self.counts) == 1 else {}
        others = [(line, each["parameters"]) for line, each in found[:best] + found[best + 1 :]]
        return {**count, **found[best][1], **self.beside(found[best][1], others)}

    def search_space(self) -> dict[str, Any] | None:
        """The last search space for NNI with what an experiment is told of its tuner."""
        spaces = [
            (line, each)
            for line, each in self.made
            if each and all(isinstance(part, dict) and "_type" in part for part in each.values())
        ]
        if not spaces:
            return None
        told = {name.rpartition(".config.")[2]: value for name, value in self.known.items()}
        tuner = {"name": told.get("tuner.name", ""), "optimize_mode": told.get("tuner.class_args['optimize_mode']", "")}
        space = spaces[-1][1]
        around = {"searchSpace": space, "tuner": tuner, "maxTrialNumber": told.get("max_trial_number")}
        return around | self.beside(space, spaces[:-1])

    def beside(self, taken: dict[Any, Any], others: Sequence[tuple[int, dict[Any, Any]]]) -> dict[str, str]:
        """What is to be said beside the sweep that is taken: the others, and its changes that may never be."""
        within = _inside(taken)
        named = {f"another sweep, at line {line}": ", ".join(map(str, each)) for line, each in others}
        return named | {line: said for held, line, said in self.doubts if id(held) in within}


def _are_statements(part: Any) -> bool:
    """Whether a field of a statement holds others: its body, its other branch, its handlers, its cases."""
    return isinstance(part, list) and isinstance(part[0], (ast.stmt, ast.ExceptHandler, ast.match_case))


def _names(target: ast.expr | None) -> Iterator[str]:
    return (node.id for node in ast.walk(target) if isinstance(node, ast.Name)) if target else iter(())


def _list(values: Any) -> list[Any]:
    """A list, or the numbers of a range; TypeError of anything else."""
    if (isinstance(values, range) and len(values) <= MOST_ENTRIES) or isinstance(values, list):
        return list(values)
    raise TypeError


def _number(value: Any) -> float:
    if isinstance(value, (int, float)):
        return value
    raise TypeError


def _small(value: float) -> float:
    """A number of which powers are numbers; OverflowError of a larger one."""
    if abs(value) > MOST_ENTRIES:
        raise OverflowError
    return value


def _text(value: Any) -> str:
    """A part of a text with values in it; TypeError where it is not known."""
    if isinstance(value, Unread):
        raise TypeError
    return str(value)


def _inside(content: Any) -> dict[int, Any]:
    """All dicts and lists in nested ones and those themselves, by their identities, which last as long as they do."""
    met: dict[int, Any] = {}
    left = [content]
    while left:
        part = left.pop()
        if isinstance(part, (dict, list, ValuesView)) and id(part) not in met:
            met[id(part)] = part
            left += part.values() if isinstance(part, dict) else part
    return met
