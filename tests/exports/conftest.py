"""What several tests of exports only read is made once."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from cifar_sweep.cli import main
from tests.conftest import TINY_SWEEP

# Some normalise and some do not, one has the softmax inside: nothing may be taken from the first member alone.
MIXED = """
sampler = "given"
pruner = "none"
keep_weights = 9
[fixed]
model = "lenet"
precision = "fp32"
batch_size = 20
epochs = 2
[space]
learning_rate = { low = 1e-5, high = 0.1, log = true }
normalize = { choices = [false, true] }
softmax = { choices = [false, true] }
[[enqueue]]
label = "plain"
learning_rate = 3e-3
[[enqueue]]
label = "normalised"
learning_rate = 2e-3
normalize = true
[[enqueue]]
label = "softmax"
learning_rate = 3e-3
softmax = true
"""
RUN = ("--data", "synthetic:500", "--workers", "1", "--threads", "1")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Callable[..., Path]:
    """A folder with a sweep file in which commands were run."""

    def run(name: str, sweep: str, commands: Sequence[Sequence[str]]) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / f"{name}.toml").write_text(sweep)
        threads = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patched:
            for variable in [variable for variable in os.environ if variable.startswith("CIFAR_SWEEP_")]:
                patched.delenv(variable)
            settings = {"CACHE": str(session_cache), "ONNX": "0", "WORKERS": "1", "GROUP": "1"}
            for variable, value in settings.items():
                patched.setenv(f"CIFAR_SWEEP_{variable}", value)
            patched.chdir(folder)
            for command in commands:
                with pytest.raises(SystemExit) as ended:
                    main(list(command))
                assert not ended.value.code
        torch.set_num_threads(threads)
        return folder

    return run


@pytest.fixture(scope="session")
def mixed_folder(made: Callable[..., Path]) -> Path:
    """Where study mixed was run, and its trials 0 and 1 were exported as one-0 and one-1."""
    exports = [("export", "mixed", "--trial", str(number), "--out", f"one-{number}") for number in range(2)]
    return made("mixed", MIXED, [("run", "mixed.toml", *RUN), *exports])


@pytest.fixture
def study(mixed_folder: Path, tmp_path: Path) -> str:
    """The study of `MIXED`, in a copy of its folder that is the test's own."""
    for name in ("mixed.toml", "studies.db"):
        shutil.copy(mixed_folder / name, tmp_path)
    shutil.copytree(mixed_folder / "artifacts", tmp_path / "artifacts")
    return "mixed"


@pytest.fixture(scope="session")
def two_exports(made: Callable[..., Path]) -> Path:
    """Where study tiny was run, and its trials were exported as one and two."""
    exports = [("export", "tiny", "--trial", str(number), "--out", name) for number, name in enumerate(("one", "two"))]
    return made("tiny", TINY_SWEEP, [("run", "tiny.toml", *RUN, "--trials", "2"), *exports])


@pytest.fixture
def exports(two_exports: Path, tmp_path: Path) -> None:
    """The folders one and two, the test's own."""
    for name in ("one", "two"):
        shutil.copytree(two_exports / name, tmp_path / name)
