"""How large is the package, and does it keep its limits?

Counts every line of every Python file: code, comments, docstrings and blank lines. Prints the lines of each room and
its share of the whole, the median and the longest functions, and each limit that is exceeded. The exit code is 1 if a
limit is exceeded.

    python benchmarks/size.py [FOLDER]
"""

import argparse
import ast
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "cifar_sweep"
MOST_LINES = 15_000
LARGEST_SHARE = 0.18  # of a room; modules that lie in no room count as one
LONGEST_MEDIAN = 8
LONGEST_FUNCTION = 60
LONGEST_MODULE = 400
SHOWN_FUNCTIONS = 10


@dataclass(frozen=True)
class Size:
    """Lines of modules and of functions, by their place in the package: `study/claim.py`, `study/claim.py:take`."""

    modules: dict[str, int]
    functions: dict[str, int]

    @property
    def lines(self) -> int:
        return sum(self.modules.values())

    def rooms(self) -> Counter[str]:
        """The lines of each folder right below the package; "." has the modules outside of all folders."""
        rooms: Counter[str] = Counter()
        for place, lines in self.modules.items():
            rooms[place.partition("/")[0] if "/" in place else "."] += lines
        return rooms

    def median(self) -> float:
        """Lines of the median function, signature and docstring included."""
        return statistics.median(self.functions.values())


def measure(package: Path) -> Size:
    """Read all Python files below a folder."""
    modules: dict[str, int] = {}
    functions: dict[str, int] = {}
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        text = path.read_text()
        modules[place] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                # The line tells apart functions of one name in one module.
                functions[f"{place}:{node.lineno} {node.name}"] = (node.end_lineno or node.lineno) - node.lineno + 1
    return Size(modules, functions)


def over_lines(size: Size) -> list[str]:
    return [f"{size.lines:,} lines; at most {MOST_LINES:,}"] if size.lines > MOST_LINES else []


def over_rooms(size: Size) -> list[str]:
    shares = {room: lines / size.lines for room, lines in size.rooms().items()}
    return [
        f"{room}: {share:.1%}; at most {LARGEST_SHARE:.0%}" for room, share in shares.items() if share > LARGEST_SHARE
    ]


def over_median(size: Size) -> list[str]:
    median = size.median()
    return [f"median function: {median:g} lines; at most {LONGEST_MEDIAN}"] if median > LONGEST_MEDIAN else []


def over_functions(size: Size) -> list[str]:
    return [
        f"{place}: {n} lines; at most {LONGEST_FUNCTION}"
        for place, n in longest(size.functions)
        if n > LONGEST_FUNCTION
    ]


def over_modules(size: Size) -> list[str]:
    return [f"{place}: {n} lines; at most {LONGEST_MODULE}" for place, n in longest(size.modules) if n > LONGEST_MODULE]


LIMITS = (over_lines, over_rooms, over_median, over_functions, over_modules)


def longest(lines: dict[str, int]) -> list[tuple[str, int]]:
    return Counter(lines).most_common()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=PACKAGE)
    size = measure(parser.parse_args().folder)
    print(f"{size.lines:,} lines in {len(size.modules)} modules and {len(size.functions)} functions")
    for room, lines in size.rooms().most_common():
        print(f"{lines:7,} {lines / size.lines:6.1%}  {room}")
    print(f"median function: {size.median():g} lines; the longest:")
    for place, lines in longest(size.functions)[:SHOWN_FUNCTIONS]:
        print(f"{lines:7}  {place}")
    exceeded = [sentence for limit in LIMITS for sentence in limit(size)]
    for sentence in exceeded:
        print(f"over the limit: {sentence}")
    sys.exit(1 if exceeded else 0)


if __name__ == "__main__":
    main()
