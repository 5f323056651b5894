"""Networks of a user's own: any module, on any classes, with no change to our code."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.training import apart, train
from cifar_sweep.training.apart import Apart
from cifar_sweep.training.fuse import Fused, can_fuse
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build
from cifar_sweep.training.rows import Masks
from cifar_sweep.training.train import Run
from tests.bare import BarePython
from tests.training.runs import assert_members_equal, trained

CPU = torch.device("cpu")
MODULE = '''
"""Two networks: one with a shortcut, and one that is a plain row of layers."""
import torch
from torch import nn
from torch.nn import functional


class Shortcut(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(0.0)
        self.leave = nn.Linear(16 * width, classes)
        self.scale = nn.Parameter(torch.ones(1))
        self.offset = nn.Parameter(torch.zeros(classes), requires_grad=False)

    def forward(self, x):
        x = functional.relu(self.norm(self.enter(x)))
        x = functional.adaptive_avg_pool2d(x + self.scale * self.inner(x), 4)
        return self.leave(self.dropout(x.flatten(1))) + self.offset


class Drawing(Shortcut):
    def forward(self, x):
        x = functional.dropout(super().forward(x), 0.2, self.training)
        return x + 0.1 * torch.randn_like(x) if self.training else x


class Running(Shortcut):
    def __init__(self, width, classes):
        super().__init__(width, classes)
        self.register_buffer("mean", torch.zeros(3, 1, 1))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.mean((0, 2, 3))[:, None, None], 0.1)
        return super().forward(x - self.mean)


def running(shape):
    return Running(8, shape.classes)


def build(shape):
    return Shortcut(8, shape.classes)


def drawing(shape):
    return Drawing(8, shape.classes)


def plain(shape):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=(1, 0)),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16 * 4 * 3, shape.classes, bias=False),
    )


def nothing(shape):
    return None


def small(shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))


def broken(shape):
    raise ValueError("no such width.")


def narrow(shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(100, shape.classes))
'''
SWEEP = """
trials = 3
pruner = "none"

[fixed]
model = "my_module:build"
precision = "fp32"
batch_size = 20
epochs = 2

[space]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
dropout = { low = 0.0, high = 0.5 }
"""


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder that no other test has loaded."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    return name


def config(model: str, *, seed: int = 0, **params: Any) -> TrialConfig:
    small = {"model": model, "batch_size": 50, "epochs": 3, "train_images": 100}
    return TrialConfig.from_params(small | params, classes=10, precision="fp32", data_seed=7, seed=seed)


def test_which_networks_are_fused(module: str) -> None:
    shapes = {name: config(f"{module}:{name}").shape for name in ("build", "plain")}
    assert [can_fuse(build(shape, seed=0)) for shape in shapes.values()] == [False, True]
    conv, flat, linear = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 10)
    assert can_fuse(nn.Sequential(conv, flat, linear))
    for layers in (
        [flat, nn.Linear(3072, 10)],  # the images are shared
        [nn.ReLU(), conv, flat, linear],
        [conv, nn.Sigmoid(), nn.ReLU(), flat, linear],  # a ReLU works in place, and a sigmoid needs its output
        [conv, nn.Sequential(nn.ReLU()), flat, linear],
        [nn.Conv2d(3, 6, 3, groups=3), flat, nn.Linear(5400, 10)],
        [nn.Conv2d(3, 4, 3, padding="same"), flat, nn.Linear(4096, 10)],
        [conv, nn.BatchNorm2d(4, affine=False), flat, linear],
        [conv, flat, linear, nn.Softmax(dim=1), nn.Linear(10, 10)],
        [conv, nn.Linear(30, 30), flat, linear],
    ):
        assert not can_fuse(nn.Sequential(*layers)), layers
    shared = nn.Conv2d(3, 3, 3, padding=1)
    assert not can_fuse(nn.Sequential(shared, nn.ReLU(), shared, flat, nn.Linear(3072, 10)))


@pytest.mark.parametrize("name", ["build", "plain", "drawing"])
def test_members_equal_their_solo_runs(name: str, module: str, small_data: ImageData) -> None:
    model = f"{module}:{name}"
    configs = [config(model, seed=seed, dropout=dropout) for seed, dropout in enumerate([0.3, 0.0, 0.2])]
    together = trained(configs, small_data)
    assert isinstance(together.network, Fused if name == "plain" else Apart)
    for k, each in enumerate(configs):
        assert_members_equal(together, k, trained([each], small_data), 0)
    together.keep([2])
    together.epoch()
    assert_members_equal(together, 0, trained([configs[2]], small_data, epochs=3), 0)


def test_the_two_ways_to_train_a_row_of_layers_agree(module: str, small_data: ImageData, monkeypatch: Any) -> None:
    configs = [config(f"{module}:plain", seed=seed, dropout=0.0, weight_decay=1e-3) for seed in range(2)]
    # Dropout apart: the masks of one draw are those of the other only where their shapes are.
    (Path(f"{module}.py")).write_text(MODULE.replace("nn.Dropout(0.1)", "nn.Dropout(0.0)"))
    fused = trained(configs, small_data)
    monkeypatch.setattr("cifar_sweep.training.train.can_fuse", lambda network: False)
    other = trained(configs, small_data)
    assert isinstance(other.network, Apart)
    for k in range(2):
        assert_members_equal(fused, k, other, k)


@pytest.mark.parametrize("name", ["build", "plain"])
def test_all_of_a_step_is_on_the_device(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which computes nothing, and takes nothing from the CPU; a layer's own dropout draws there, too."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none
    device = torch.device("meta")
    run = Run([config(f"{module}:{name}", seed=seed) for seed in range(3)], None, device=device)
    for members in ([0, 1, 2], [2, 0]):
        run.keep(members)
        run.start_epoch(1)
        run.step(torch.empty(6, 3, 32, 32, device=device), torch.empty(6, dtype=torch.long, device=device))


def test_what_networks_draw_by_themselves_is_seeded_on_their_device(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded: list[tuple[torch.device, int]] = []
    monkeypatch.setattr(apart, "seed_own_chance", lambda device, seed: seeded.append((device, seed)))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    device = torch.device("meta")
    run = Run([config(f"{module}:drawing", seed=seed) for seed in range(2)], None, device=device)
    for epoch in (1, 2, 1):
        run.start_epoch(epoch)
        for _ in range(2):
            run.step(torch.empty(6, 3, 32, 32, device=device), torch.empty(6, dtype=torch.long, device=device))
    assert {each for each, _ in seeded} == {device}
    assert len(set(seeded[:8])) == 8, "of two members, in two epochs of two steps"
    assert seeded[8:] == seeded[:4], "whatever was drawn before"


def test_the_generator_of_a_gpu_is_seeded_where_the_trial_is_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generators = [torch.Generator() for _ in range(2)]
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    with torch.random.fork_rng(devices=[]):
        apart.seed_own_chance(torch.device("cuda", 1), 7)
    assert [each.initial_seed() == 7 for each in generators] == [False, True]
    with torch.random.fork_rng(devices=[]):
        apart.seed_own_chance(CPU, 8)
    assert generators[1].initial_seed() == 7


@pytest.mark.parametrize(("name", "stream"), [("build", False), ("drawing", False), ("drawing", True)])
def test_a_member_goes_on_from_its_state(
    name: str, stream: bool, module: str, small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where masks come from streams, as on a GPU."""
    monkeypatch.setattr(train, "at_once", lambda _: stream)
    each = config(f"{module}:{name}", dropout=0.4)
    unbroken = trained([each], small_data, epochs=3)
    first = trained([each], small_data, epochs=2)
    second = trained([config(f"{module}:{name}", dropout=0.4)], small_data, epochs=0)
    second.restore(0, first.state(0))
    second.epoch()
    assert_members_equal(unbroken, 0, second, 0)


def test_what_is_not_trained_stays_and_is_kept(module: str, small_data: ImageData) -> None:
    run = trained([config(f"{module}:build", weight_decay=0.1)], small_data)
    network = run.member(0)
    assert torch.equal(network.offset, torch.zeros(10))
    assert not torch.equal(network.scale, torch.ones(1))
    assert network.state_dict().keys() == build(run.shape, seed=0).state_dict().keys()


def test_weights_with_two_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(3072, 10, bias=False)
            self.again = self.enter

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(x.flatten(1)) + self.enter(x.flatten(1))

    tied = Apart([Tied(), Tied()], [Masks(0.0, torch.Generator())] * 2)
    tied.weights.fill_(0.5)
    state = tied.member_state(1)
    assert state.keys() == {"enter.weight", "again.weight"}
    assert all(bool((value == 0.5).all()) for value in state.values())
    Tied().load_state_dict(state)


@pytest.mark.parametrize("name", ["build", "running"])
def test_bf16(name: str, module: str, small_data: ImageData) -> None:
    bf16 = TrialConfig.from_params(
        {"model": f"{module}:{name}", "batch_size": 50, "epochs": 1}, classes=10, precision="bf16", data_seed=7, seed=0
    )
    [result] = Run([bf16], small_data, device=CPU).epoch()
    [exact] = Run([config(f"{module}:{name}", train_images=0)], small_data, device=CPU).epoch()
    assert result.train_loss == pytest.approx(exact.train_loss, rel=0.03)


@pytest.fixture
def five_classes(small_data: ImageData, tmp_path: Path) -> Path:
    """An image folder with names of its own: 20 images to train on and 4 to test of each of five classes."""
    root = tmp_path / "pictures"
    parts = {"train": (small_data.train_images, small_data.train_labels, 20)}
    parts["test"] = (small_data.test_images, small_data.test_labels, 4)
    for part, (images, labels, count) in parts.items():
        for label, name in enumerate(["Fähre", "a b", "cup", "<i>", "zebra"]):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number, index in enumerate((labels == label).nonzero().flatten()[:count].tolist()):
                Image.fromarray(images[index].numpy()).save(folder / f"{number}.png")
    return root


@pytest.mark.slow
def test_a_sweep_over_a_file_of_ones_own_on_five_classes(
    module: str, five_classes: Path, cli: Any, start: Any, tmp_path: Path, bare_python: BarePython
) -> None:
    Path("own.toml").write_text(SWEEP.replace("my_module", module))
    run = ("run", "own.toml", "--data", five_classes, "--workers", 2, "--threads", 1)
    finished = cli(*run)
    assert finished.exit_code == 0, finished.err
    assert "3 of 3 trials finished: 3 complete" in finished.out
    exported = cli("export", "own", "--out", "best")
    assert exported.exit_code == 0, exported.err
    metrics = json.loads(Path("best/metrics.json").read_text())
    assert metrics["data"]["classes"] == ["<i>", "Fähre", "a b", "cup", "zebra"]
    predicted = cli("predict", "best", five_classes / "test" / "cup" / "0.png", "--json")
    assert set(json.loads(predicted.out)["images"][0]["predictions"]["best"]["probabilities"]) == set(
        metrics["data"]["classes"]
    )
    assert {path.name for path in Path("best").glob("*.py")} == {"predict.py", f"{module}.py"}
    alone = bare_python("best/predict.py", five_classes / "test" / "cup" / "0.png", cwd=tmp_path)
    said = json.loads(predicted.out)["images"][0]["predictions"]["best"]
    assert f"{said['class']} {said['probabilities'][said['class']]:.2%}" in alone.stdout
    assert cli("train", "best", "--out", "again", "--data", five_classes).exit_code == 0
    assert json.loads(Path("again/metrics.json").read_text())["test_accuracy"] == metrics["test_accuracy"]
    described = cli("model", f"{module}:build", "--json")
    assert described.exit_code == 0, described.err

    shutil.copy(f"{module}.py", "before.py")
    with Path(f"{module}.py").open("a") as file:
        file.write("# changed\n")
    refused = cli(*run, "--trials", 4)
    assert refused.exit_code == 1
    assert f"study 'own' was run with another file for model '{module}:build'" in refused.err
    assert "was trained with other files" in start("export", "own").communicate()[1]
    shutil.move("before.py", f"{module}.py")
    assert cli(*run, "--trials", 4).exit_code == 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("{}:bild", "has no function bild; did you mean build?"),
        ("{}_:build", "there is no module {}_ in "),
        ("{}.deeper:build", "there is no module {}.deeper in "),
        ("{}:nothing", "it gave a NoneType; accepted: a torch.nn.Module from images [n, 3, 32, 32] to logits"),
        ("{}:small", "it gives (2, 3); accepted: logits (2, 10)."),
        ("{}:broken", "it raised ValueError: no such width."),
        ("{}:narrow", "it fails on images [2, 3, 32, 32]: RuntimeError: mat1 and mat2"),
        ("my module:build", "or a function of your own as my_module:build"),
    ],
)
def test_a_model_that_is_none(model: str, words: str, module: str, cli: Any) -> None:
    Path("own.toml").write_text(SWEEP.replace("my_module:build", model.format(module)))
    finished = cli("run", "own.toml", "--data", "synthetic:500")
    assert finished.exit_code == 2
    assert words.format(module) in finished.err
    assert finished.err.count("\n") == 1
    assert not Path("studies.db").exists(), "nothing was made of it"


def test_a_module_that_cannot_be_loaded(module: str, cli: Any) -> None:
    Path("own.toml").write_text(SWEEP.replace("my_module", module))
    Path(f"{module}.py").write_text("import there_is_no_such_package\n")
    finished = cli("run", "own.toml", "--data", "synthetic:500")
    assert finished.exit_code == 2
    assert f"{module}.py cannot be loaded: ModuleNotFoundError: No module named" in finished.err
