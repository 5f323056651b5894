"""Every command of the README runs, in the README's order, in one folder. Small sweeps have the shipped ones' names.

`ELSEWHERE` has the commands that cannot run here as they are written, each with the test that runs it.
"""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cifar_sweep.machine import bench, plan, rehearsal
from cifar_sweep.study.opening import load
from cifar_sweep.study.storage import open_existing
from tests.conftest import TINY_SWEEP

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SMALL = {
    "lr_batch": TINY_SWEEP,
    "vgg_depth": TINY_SWEEP,
    "reports": """
sampler = "given"
pruner = "none"

[fixed]
model = "lenet"
batch_size = 32
epochs = 1

[space]
learning_rate = { low = 1e-5, high = 0.1, log = true }

[[enqueue]]
label = "B-009"
learning_rate = 1e-4
claimed = 74.96

[[enqueue]]
label = "C-1"
learning_rate = 5e-4

[[enqueue]]
label = "B-011"
learning_rate = 1e-2
""",
}
# Commands that run until they are stopped.
SERVERS = ("dashboard", "worker")
ELSEWHERE = {
    "make run": "tests/test_readme_commands.py::test_make_run_is_the_plain_way",
    "make test": "tests/test_readme_commands.py::test_make_test_all_runs_every_test_once",
    "python3 -m venv .venv": "tests/test_readme_commands.py::test_make_run_is_the_plain_way",
    ".venv/bin/pip install .": "tests/test_package.py::test_the_wheel_holds_the_sweeps_and_the_command",
    ".venv/bin/cifar-sweep run lr_batch --preview": (
        "tests/test_cli.py::test_preview_without_cifar10_runs_on_synthetic_images_and_says_so"
    ),
    "cifar-sweep run lr_batch --on ray --workers 16 --gpus-per-worker 0.5": (
        "tests/work/test_ray.py::test_a_node_is_lost_and_every_trial_finishes"
    ),
    "docker compose up": "tests/test_compose.py",
}


def commands() -> list[str]:
    """Every line of the README's shell blocks and every command in its tables, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    rows = [line for line in README.splitlines() if line.startswith("|")]
    shown = re.findall(r"`((?:cifar-sweep|docker) [^`]*)`", "\n".join(rows))
    return [line for line in dict.fromkeys([*lines, *shown]) if line]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: images, a picture of a cat, and sweeps that take seconds."""
    (tmp_path / "sweeps").mkdir()
    for name, text in SMALL.items():
        (tmp_path / "sweeps" / f"{name}.toml").write_text(text)
    Image.new("RGB", (60, 40), "gray").save(tmp_path / "cat.jpg")
    (tmp_path / "sweep.yaml").write_text("method: random\nparameters:\n  lr: {values: [0.1, 0.01]}\n")
    monkeypatch.setenv("CIFAR_SWEEP_DATA", "synthetic:500")
    monkeypatch.setattr(bench, "CASES", [("lenet", 32)])
    monkeypatch.setattr(bench, "SECONDS", 0.05)
    monkeypatch.setattr(plan, "GROUP_SIZES", (1,))
    monkeypatch.setattr(rehearsal, "LONGEST_SECONDS", 1.0)
    return tmp_path


@pytest.fixture
def stand_ins(postgres_url: str) -> dict[str, str]:
    """What runs instead of the README's examples, which are different for each reader."""
    return {"postgresql://me@db/sweeps": postgres_url, "--trials 200": "--trials 5"}


@pytest.mark.slow
def test_every_command_runs(folder: Path, cli: Any, start: Any, stand_ins: dict[str, str]) -> None:
    ran = []
    for command in commands():
        if command in ELSEWHERE:
            continue
        for written, here in stand_ins.items():
            command = command.replace(written, here)
        program, *arguments = command.split()
        assert program == "cifar-sweep", f"{command}: no test runs it"
        if arguments[0] in SERVERS:
            serve(start(*arguments), arguments[0])
        else:
            finished = cli(*arguments)
            assert finished.exit_code == 0, f"{command}: {finished.err}"
        ran.append(arguments[0])
    assert {"run", "plan", "status", "report", "export", "evaluate", "compare", "submit", "copy", "bench"} <= set(ran)
    with closing(open_existing("sqlite:///studies.db")) as storage:
        assert len(load(storage, "lr_batch").ranked()) == 5, "the worker trained what was submitted"
    assert Path("lr_batch-report.html").exists()
    assert Path("best/predict.py").exists()
    said = subprocess.run([sys.executable, "best/predict.py", "cat.jpg"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("cat.jpg: ")


def serve(process: "subprocess.Popen[str]", command: str) -> None:
    """Wait until it is up, and a worker until all is trained. Then stop it as Ctrl-C would."""
    assert process.stdout is not None
    assert process.stdout.readline()
    if command == "worker":
        end = time.monotonic() + 120
        while time.monotonic() < end and not _all_done():
            time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode in (0, 130), out + err


def _all_done() -> bool:
    with closing(open_existing("sqlite:///studies.db")) as storage:
        return all(load(storage, name).finished() for name in ("lr_batch", "vgg_depth"))


@pytest.mark.slow
def test_the_python_code_runs(folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1
    (folder / "script.py").write_text(blocks[0] + "print(type(network).__name__, len(study.curves()))\n")
    finished = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=180)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "Sequential 60"


@pytest.fixture
def recipes() -> Callable[[str], str]:
    """The lines that make would run for a target in a fresh checkout."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")

    def of(target: str) -> str:
        command = ["make", "-n", "--no-print-directory", "-C", str(ROOT), target, "VENV=.venv-that-is-not-there"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return of


def test_make_run_is_the_plain_way(recipes: Any) -> None:
    lines = recipes("run")
    assert "python3 -m venv .venv-that-is-not-there" in lines
    assert "bin/pip install" in lines
    assert lines.rstrip().endswith("bin/cifar-sweep run lr_batch --preview")


def selections(recipe: str) -> list[str]:
    """The marker expression of each run of pytest."""
    runs = [shlex.split(line) for line in recipe.splitlines() if "-m pytest" in line]
    return [words[words.index("-m", 3) + 1] for words in runs]


def test_make_test_all_runs_every_test_once(recipes: Any) -> None:
    """Each mix of markers is selected by exactly one run. `make test` is the first of them, without the slow tests."""
    quick, every = selections(recipes("test")), selections(recipes("test-all"))
    assert every == quick + selections(recipes("test-slow"))
    for slow, alone in product([False, True], repeat=2):
        chosen = [text for text in every if eval(text, {"slow": slow, "alone": alone})]
        assert len(chosen) == 1, (slow, alone)
        assert (chosen == quick) == (not slow and not alone)


def test_ci_runs_the_readmes_command_and_the_slow_tests() -> None:
    targets = re.findall(r"^make (\S+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert targets == ["lint", "test", "test-slow"]


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_what_is_run_elsewhere_is(place: str) -> None:
    path, _, name = place.partition("::")
    assert not name or f"def {name}(" in (ROOT / path).read_text()
