"""The code of a user's network that runs is the code whose fingerprint is stored."""

import hashlib
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build
from cifar_sweep.training.models.own import check_outputs, fingerprint
from cifar_sweep.training.models.user_code import user_code
from cifar_sweep.training.train import Run

PLAIN = """
from torch import nn


def build(shape):
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, shape.classes))
"""
# The import stands in a function, and another one in the forward pass.
LAZY = """
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        from parts.widths import WIDTH

        self.linear = nn.Linear(3072, classes * WIDTH)

    def forward(self, x):
        import halves

        return halves.first(self.linear(x.flatten(1)))


def build(shape):
    return Net(shape.classes)
"""


def shape_of(model: str) -> Any:
    return config(model).shape


def config(model: str) -> TrialConfig:
    params = {"model": model, "batch_size": 50, "epochs": 2, "train_images": 100}
    return TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=7, seed=0)


def layers(network: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in network.children()]


def lazy() -> str:
    Path("lazy.py").write_text(LAZY)
    Path("parts").mkdir()
    Path("parts/widths.py").write_text("from .numbers import ONE\nWIDTH = ONE\n")
    Path("parts/numbers.py").write_text("ONE = 1\n")
    Path("halves.py").write_text("def first(x):\n    return x\n")
    return "lazy:build"


def test_an_edited_file_is_what_runs_next(small_data: ImageData) -> None:
    """An edit that keeps the size of the file and its time, which Python's own .pyc files do not see."""
    file, model = Path("edited.py"), "edited:build"
    file.write_text(PLAIN)
    os.utime(file, (1e9, 1e9))
    before = fingerprint(model)
    run = Run([config(model)], small_data, device=torch.device("cpu"), code=before)
    assert "ReLU" in layers(build(shape_of(model), seed=0))
    file.write_text(PLAIN.replace("ReLU", "SELU"))
    os.utime(file, (1e9, 1e9))
    assert fingerprint(model) != before
    assert "SELU" in layers(build(shape_of(model), seed=0))
    run.epoch()  # a trial that has begun goes on with what it began with, and so does all of its study
    assert "ReLU" in layers(run.member(0))
    assert "ReLU" in layers(build(shape_of(model), seed=0, code=before))
    with pytest.raises(StudyError, match=r"edited\.py, or a file it imports, is another one by now"):
        build(shape_of(model), seed=0, code="0123456789abcdef")


def test_an_edit_is_checked_anew() -> None:
    file, model = Path("checked.py"), "checked:build"
    file.write_text(PLAIN)
    check_outputs(shape_of(model))
    file.write_text(PLAIN.replace("shape.classes", "3"))
    with pytest.raises(UsageError, match=r"it gives \(2, 3\)"):
        check_outputs(shape_of(model))


@pytest.mark.parametrize(
    ("helper", "was", "now"),
    [("halves.py", "return x", "return 2 * x"), ("parts/numbers.py", "1", "1 + 0"), ("parts/__init__.py", "", "pass")],
)
def test_what_is_imported_from_beside_is_part_of_it(helper: str, was: str, now: str) -> None:
    model, file = lazy(), Path(helper)
    assert set(user_code(model).files) == {"lazy.py", "parts/widths.py", "parts/numbers.py", "halves.py"}
    before, images = fingerprint(model), torch.rand(2, 3, 32, 32)
    old = build(shape_of(model), seed=0)
    output = old(images)
    file.write_text((file.read_text() if file.exists() else "").replace(was, now) or now)
    assert fingerprint(model) != before
    new = build(shape_of(model), seed=0)
    assert torch.equal(new(images), output * (2 if helper == "halves.py" else 1))
    assert torch.equal(old(images), output), "each version imports its own"


def test_a_file_alone_has_the_fingerprint_that_it_always_had() -> None:
    Path("alone.py").write_text("import torch\nimport random\n\ndef build(shape): ...\n")
    Path("random.py").write_text("raise RuntimeError\n")  # of Python's own names Python's own modules
    assert fingerprint("alone:build") == hashlib.sha256(Path("alone.py").read_bytes()).hexdigest()[:16]


def test_other_modules_of_these_names_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, theirs = lazy(), type(sys)("halves")
    monkeypatch.setitem(sys.modules, "halves", theirs)
    path = list(sys.path)
    build(shape_of(model), seed=0)(torch.rand(2, 3, 32, 32))
    assert sys.modules["halves"] is theirs
    assert "lazy" not in sys.modules
    assert sys.path == path


def test_an_import_that_cannot_be_hashed_is_refused() -> None:
    Path("hidden.py").write_text("WIDTH = 1\n")
    Path("dynamic.py").write_text("import importlib\n\ndef build(shape):\n    importlib.import_module('hidden')\n")
    with pytest.raises(UsageError, match=r"hidden\.py has to be imported by an import statement"):
        check_outputs(shape_of("dynamic:build"))


SEEDING = "import random\nimport numpy\nimport torch\ntorch.manual_seed(0)\nnumpy.random.seed(0)\nrandom.seed(0)\n"


def test_a_module_that_seeds_and_prints_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    Path("quiet.py").write_text(PLAIN)
    Path("loud.py").write_text(SEEDING + "print('imported')\n" + PLAIN.replace("return", "print('built'); return"))
    draws = []
    for module in ("quiet", "loud"):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        network = build(shape_of(f"{module}:build"), seed=3)
        draws.append([*network.state_dict().values(), torch.rand(2), random.random(), np.random.random()])
    for quiet, loud in zip(*draws, strict=True):
        assert torch.equal(torch.as_tensor(quiet), torch.as_tensor(loud))
    said = capfd.readouterr()
    assert said.out == ""
    assert "imported\nbuilt" in said.err


SWEEP = """
trials = 1
pruner = "none"
[fixed]
model = "between:build"
precision = "fp32"
batch_size = 50
epochs = 1
[space]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
"""


@pytest.mark.slow
def test_edited_between_two_studies_of_one_process(cli: Any, start: Any) -> None:
    Path("between.toml").write_text(SWEEP)
    run = ("run", "./between.toml", "--data", "synthetic:500", "--study")
    for name, width in (("first", 4), ("second", 8)):
        text = PLAIN.replace("3, 4, 3", f"3, {width}, 3").replace("256", str(64 * width))
        Path("between.py").write_text(f"{SEEDING}print('imported')\nfrom parts_of_it import here\n{text}")
        Path("parts_of_it.py").write_text(f"here = {width}\n")
        finished = cli(*run, name)
        assert finished.exit_code == 0, finished.err
    exported = cli("export", "second", "--out", "best")
    assert exported.exit_code == 0, exported.err
    assert {path.name for path in Path("best").glob("*.py")} == {"between.py", "parts_of_it.py", "predict.py"}
    trained = cli("train", "best", "--out", "again")
    assert trained.exit_code == 0, trained.err
    assert Path("again/weights.safetensors").read_bytes() == Path("best/weights.safetensors").read_bytes()
    assert cli("evaluate", "best", "--json").out.startswith("{")
    assert cli("export", "first", "--out", "old").exit_code == 0
    assert Path("old/parts_of_it.py").read_text() == "here = 4\n", "as it was trained, not as it lies there now"
    elsewhere = start("evaluate", "old")
    assert elsewhere.communicate()[1].count("is another one by now; restore it") == 1
    elsewhere = start("export", "first")
    assert "trial 0 was trained with other files" in elsewhere.communicate()[1]
