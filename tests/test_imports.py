"""Imports point downwards only, commands start without heavy modules, and only `study` knows Optuna's trials."""

import ast
import re
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
    "version": set(),
    "curve": set(),
    "words": {"parameters"},
    "pages": {"words"},
    "files": {"errors"},
    "parameter": set(),
    "training_parameters": {"parameter"},
    "parameters": {"training_parameters", "parameter", "errors"},
    "layers": {"parameters", "errors"},
    "config": {"layers", "parameters", "errors"},
    "schedules": {"parameters"},
    "artifacts": {"files", "errors"},
    "sweep": {"training_parameters", "parameter", "layers", "config", "parameters", "files", "errors"},
    "convert": {"sweep", "parameter", "parameters", "errors"},
    "search": {"layers", "sweep", "schedules", "config", "parameters"},
    "database": {"files", "errors"},
    "study": {"database", "search", "sweep", "artifacts", "curve", "words", "config", "parameters", "errors"},
    "replay": {"study", "search", "sweep", "curve", "config", "parameters", "errors"},
    "pictures": {"config", "parameters", "errors"},
    "training": {
        "training_parameters", "layers", "pictures", "schedules", "curve", "config", "parameters", "files", "errors",
    },
    "forecast": {"training_parameters", "layers", "study", "search", "sweep", "config", "parameters", "errors"},
    "machine": {
        "training_parameters", "layers", "forecast", "training", "sweep", "config", "parameters", "files", "errors",
    },
    "exports": {
        "study", "artifacts", "curve", "training", "pictures", "words", "config", "parameters", "files", "pages",
        "version", "errors",
    },
    "work": {
        "machine", "forecast", "exports", "study", "database", "search", "sweep", "artifacts", "training", "curve",
        "config", "parameters", "files", "version", "errors",
    },
    "hand": {"exports", "study", "sweep", "training", "artifacts", "words", "config", "parameters", "errors"},
    "figures": {"hand", "study", "sweep", "curve", "words", "config", "parameters", "files", "errors"},
    "report": {
        "figures", "hand", "exports", "study", "sweep", "training", "artifacts", "words", "config",
        "parameters", "files", "pages",
        "version", "errors",
    },
    "dashboard": {
        "figures", "hand", "study", "database", "search", "sweep", "artifacts", "words", "config",
        "parameters", "pages", "errors",
    },
    "terminal": {
        "curve", "forecast", "study", "database", "sweep", "training", "artifacts", "words", "config",
        "parameters", "pages", "errors",
    },
    "cli": {
        "convert",
        "dashboard", "report", "terminal", "replay", "figures", "hand", "work", "machine", "forecast", "exports",
        "study", "database", "sweep", "training", "artifacts", "words", "config",
        "parameters", "files", "pages", "errors",
    },
    "api": {
        "terminal", "figures", "work", "machine", "forecast", "exports", "study", "sweep", "training", "artifacts",
        "config", "parameters", "errors",
    },
    "__main__": {"cli"},
    "__init__": {"api"},
}  # fmt: skip
# What only one column may know.
FORBIDDEN = {
    "training": {"optuna", "sqlalchemy", "sqlite3", "tomllib", "pydantic"},
    "search": {"optuna", "sqlalchemy", "sqlite3", "tomllib"},
} | {room: {"torch", "torchvision"} for room in ("sweep", "study", "pictures", "forecast", "figures", "dashboard")}
# How Optuna keeps a trial. Other rooms read `study.record.TrialRecord`.
STORED = re.compile(r"\b(user_attrs|system_attrs|FrozenTrial|TrialState)\b")


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
    inside = {name.split(".")[1] for name in names if name.startswith("cifar_sweep.")} - {room}
    outside = {name.split(".")[0] for name in names}
    return (inside - ALLOWED[room]) | (outside & FORBIDDEN.get(room, set()))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_downwards(module: Path) -> None:
    assert wrong_imports(module.parts[0], (PACKAGE / module.with_suffix(".py")).read_text()) == set()


def test_a_wrong_import_is_seen() -> None:
    assert wrong_imports("training", "from cifar_sweep.study.opening import load") == {"study"}
    assert wrong_imports("study", "def f():\n    import torch.nn") == {"torch"}


def stored_names(room: str, source: str) -> set[str]:
    return set() if room == "study" else set(STORED.findall(source))


def test_the_study_alone_knows_how_a_trial_is_stored() -> None:
    found = {
        module: stored_names(module.parts[0], (PACKAGE / module.with_suffix(".py")).read_text()) for module in MODULES
    }
    assert {str(module): names for module, names in found.items() if names} == {}


def test_a_stored_name_is_seen() -> None:
    assert stored_names("report", 'trial.user_attrs["curve"]') == {"user_attrs"}
    assert stored_names("study", 'trial.user_attrs["curve"]') == set()


def test_the_rooms_have_an_order() -> None:
    """No arrow runs upwards: rooms can be taken away one by one, each once nothing that is left imports it."""
    left = {room: set(allowed) for room, allowed in ALLOWED.items()}
    while free := [room for room in left if not any(room in allowed for allowed in left.values())]:
        for room in free:
            del left[room]
    assert left == {}


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


def test_the_study_never_loads_torch() -> None:
    assert loaded_by("import cifar_sweep.study.study, cifar_sweep.sweep.file", "torch") == set()


def test_list_loads_neither_torch_nor_a_database() -> None:
    assert loaded_by(HELP.replace("--help", "list"), "torch", "sqlalchemy") == set()


def test_the_import_tests_can_fail() -> None:
    assert loaded_by("import cifar_sweep.study.study", "optuna") == {"optuna"}
