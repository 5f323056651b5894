"""What the README says is so."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import typer

from cifar_sweep.cli import app
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Choices, Range

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_sweep_file_is_accepted() -> None:
    [text] = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    sweep = parse({"name": "readme"} | tomllib.loads(text), where="README.md")
    assert isinstance(sweep.space["batch_size"], Range)
    assert isinstance(sweep.space["activation"], Choices)
    assert sweep.enqueue[0].label == "report A"


def test_every_command_and_option_exists() -> None:
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    named = set(re.findall(r"cifar-sweep (\w+)", README)) - {"study"}
    assert named >= {"run", "status", "dashboard", "export", "train", "doctor"}
    assert named <= set(commands)
    options = {name for command in commands.values() for option in command.params for name in option.opts}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))
    assert {"--trials", "--set", "--max-hours"} <= mentioned <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_the_other_pages_exist(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"^(?:exec )?cifar-sweep (.*)$", page.read_text(), re.MULTILINE):
        command = commands[line.split()[0]]
        options = {name for option in command.params for name in option.opts}
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line.partition("#")[0])) <= options, line


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_contributing_names_every_module() -> None:
    """And no other."""
    [tree] = re.findall(r"^cifar_sweep/\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)
    listed = Counter(re.findall(r"\w+\.py", tree))
    package = ROOT / "cifar_sweep"
    there = Counter(path.name for path in package.rglob("*.py") if path.name != "__init__.py")
    assert there - listed == Counter(), "not listed"
    assert listed - there == Counter(), "not there"


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
