"""Imports point downwards only, and the command line starts without the heavy modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cifar_sweep

PACKAGE = Path(cifar_sweep.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))

# For each room, the rooms that its modules may import at any level.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "config": {"errors"},
    "own_model": {"config", "errors"},
    "training": {"training", "own_model", "config", "files", "errors"},
    "search": {"search", "config", "files", "errors"},
    "artifacts": {"files", "errors"},
    "keeping": {"artifacts", "training", "search", "errors"},
    "runner": {"keeping", "artifacts", "training", "search", "config", "errors"},
    "service": {"runner", "artifacts", "training", "search", "own_model", "config", "errors"},
    "launch": {"launch", "service", "runner", "training", "search", "config", "files", "errors"},
    "results": {"results", "keeping", "own_model", "artifacts", "training", "search", "config", "files", "errors"},
    "cli": {"cli", "launch", "results", "service", "keeping", "artifacts", "training", "search", "config", "errors"},
    "api": {"launch", "results", "service", "artifacts", "training", "search", "config", "errors"},
    "__main__": {"cli"},
    "__init__": {"api"},
}
# What only one column may know.
FORBIDDEN = {"training": {"optuna", "sqlalchemy", "sqlite3", "tomllib", "pydantic"}, "search": {"torch", "torchvision"}}


def imported(source: str) -> set[str]:
    """Every module that a source imports, anywhere in it, by its full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wrong_imports(room: str, source: str) -> set[str]:
    names = imported(source)
    inside = {name.split(".")[1] for name in names if name.startswith("cifar_sweep.")} - {"__version__"}
    outside = {name.split(".")[0] for name in names}
    return (inside - ALLOWED[room]) | (outside & FORBIDDEN.get(room, set()))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_downwards(module: Path) -> None:
    assert wrong_imports(module.parts[0], (PACKAGE / module.with_suffix(".py")).read_text()) == set()


def test_a_wrong_import_is_seen() -> None:
    assert wrong_imports("training", "from cifar_sweep.search.study import load") == {"search"}
    assert wrong_imports("search", "def f():\n    import torch.nn") == {"torch"}


def loaded_by(statement: str, *names: str) -> set[str]:
    """Which of `names` are loaded after `statement` in a fresh interpreter."""
    script = f"import sys\n{statement}\nprint(*(name for name in {names!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


HELP = (
    "sys.argv = ['cifar-sweep', '--help']\ntry:\n    from cifar_sweep.cli import main; main()\nexcept SystemExit: pass"
)


def test_help_loads_nothing_heavy() -> None:
    assert loaded_by(HELP, "torch", "optuna", "plotly", "pandas", "sqlalchemy", "pydantic", "rich.console") == set()


def test_training_never_loads_optuna() -> None:
    assert loaded_by("import cifar_sweep.training.train", "optuna", "sqlalchemy") == set()


def test_search_never_loads_torch() -> None:
    assert loaded_by("import cifar_sweep.search.study", "torch") == set()


def test_the_import_tests_can_fail() -> None:
    assert loaded_by("import cifar_sweep.runner", "torch", "optuna") == {"torch", "optuna"}
