"""What a sweep is said to cost: the arithmetic, the draws, and the times that are kept."""

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_sweep.config import TrialConfig
from cifar_sweep.results import cost
from cifar_sweep.results.cost import Speed, Speeds, estimates, measure_speeds, network_of, seconds_of
from cifar_sweep.search.sweepfile import Choices, Range, Sweep, contains, parse
from cifar_sweep.training.group import Group

CPU = torch.device("cpu")
# 1 ms an image, 10 ms a batch.
LENET = Speeds({"lenet": Speed(image=0.001, step=0.010)})
VALIDATION = 10_000 * 0.35 * (0.001 + 0.010 / 200)


def sweep(**keys: Any) -> Sweep:
    return parse({"name": "test"} | keys, where="test")


def epoch(images: int, batch: int) -> float:
    return images * (0.001 + 0.010 / batch) + VALIDATION


def given(*points: dict[str, Any], **space: Any) -> Sweep:
    labelled = [{"label": str(number), **point} for number, point in enumerate(points)]
    keys: dict[str, Any] = {"fixed": {"model": "lenet"}, "space": space, "enqueue": labelled}
    return sweep(sampler="given", pruner="none", **keys)


def test_the_two_parts_of_a_step() -> None:
    assert Speed(image=0.001, step=0.032).per_image(16) == pytest.approx(0.003)
    both = Speed.between(0.003, 0.0015)
    assert (both.image, both.step) == pytest.approx((0.001, 0.032))


def test_neither_part_is_below_zero() -> None:
    assert Speed.between(0.001, 0.002) == Speed(image=0.002, step=0.0)
    overhead = Speed.between(0.010, 0.001)
    assert (overhead.image, overhead.step) == pytest.approx((0.0, 0.064))


def test_given_points_are_added_up() -> None:
    points = given(
        {"batch_size": 16, "epochs": 3},
        {"batch_size": 64, "epochs": 5, "train_images": 4000},
        {"epochs": 2},  # what a given point leaves out is its default: batch 64, all images
        batch_size={"low": 16, "high": 64, "base2": True},
        epochs={"low": 1, "high": 300},
        train_images={"low": 0, "high": 40000},
    )
    expected = 3 * epoch(40_000, 16) + 5 * epoch(4000, 64) + 2 * epoch(40_000, 64)
    assert seconds_of(points, LENET) == pytest.approx(expected)


def test_a_given_point_of_another_model_costs_its_own_time() -> None:
    models = {"choices": ["lenet", "cnn1"]}
    points = parse(
        {"name": "test", "sampler": "given", "pruner": "none", "fixed": {"epochs": 1}, "space": {"model": models}}
        | {"enqueue": [{"label": "a", "model": "lenet"}, {"label": "b", "model": "cnn1"}]},
        where="test",
    )
    speeds = Speeds({**LENET.networks, "cnn1": Speed(0.5, 0.0)})
    assert seconds_of(points, speeds) == pytest.approx(epoch(40_000, 64) + 40_000 * 0.5 + 10_000 * 0.35 * 0.5)


FIXED = {"model": "lenet", "batch_size": 32, "epochs": 4, "train_images": 1000}
RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def test_what_is_fixed_costs_the_same_in_every_trial() -> None:
    assert seconds_of(sweep(trials=7, fixed=FIXED, space=RATE), LENET) == pytest.approx(7 * 4 * epoch(1000, 32))
    assert seconds_of(sweep(trials=7, fixed=FIXED), LENET) == pytest.approx(7 * 4 * epoch(1000, 32))


def test_the_mean_over_the_space() -> None:
    space = {"epochs": {"choices": [10, 30]}}
    seconds = seconds_of(sweep(trials=50, fixed={"model": "lenet"}, space=space), LENET)
    assert seconds == pytest.approx(50 * 20 * epoch(40_000, 64), rel=0.1)
    assert seconds == seconds_of(sweep(trials=50, fixed={"model": "lenet"}, space=space), LENET)


def test_points_tried_first_count_as_themselves() -> None:
    keys: dict[str, Any] = {"fixed": {"model": "lenet"}, "space": {"epochs": {"low": 1, "high": 300}, **RATE}}
    first = [{"epochs": 300, "learning_rate": 1e-3}, {"epochs": 200}, {"epochs": 200}]
    both = seconds_of(sweep(trials=2, enqueue=first, **keys), LENET)
    assert both == pytest.approx((300 + 200) * epoch(40_000, 64))  # the third is the second again
    assert seconds_of(sweep(trials=1, enqueue=first, **keys), LENET) == pytest.approx(300 * epoch(40_000, 64))
    drawn = seconds_of(sweep(trials=1, **keys), LENET)
    assert seconds_of(sweep(trials=5, enqueue=first, **keys), LENET) == pytest.approx(both + 3 * drawn)
    assert drawn == pytest.approx(150.5 * epoch(40_000, 64), rel=0.15)


def test_what_a_point_leaves_open_is_drawn() -> None:
    keys: dict[str, Any] = {"fixed": {"model": "lenet"}, "space": {"epochs": {"choices": [10, 30]}, **RATE}}
    one = seconds_of(sweep(trials=1, enqueue=[{"learning_rate": 1e-3}], **keys), LENET)
    assert one == pytest.approx(20 * epoch(40_000, 64), rel=0.1)


def test_batch_norm_is_timed_apart_in_small_networks() -> None:
    def network(**params: Any) -> str:
        return network_of(TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0).shape)

    assert network(model="cnn3") == "cnn3"
    assert network(model="cnn3", batch_norm=True) == "cnn3+batch_norm"
    assert network(model="vgg16", batch_norm=True) == network(model="vgg16", batch_norm=False) == "vgg16"


def drawn(domain: Range | Choices, name: str) -> list[Any]:
    generator = random.Random(1)
    values = [cost.draw({name: domain}, generator)[name] for _ in range(2000)]
    assert all(contains(domain, value) for value in values)
    return values


def test_draws_are_as_the_domain_says() -> None:
    powers = drawn(Range(low=16, high=256, base2=True), "batch_size")
    assert {power: round(powers.count(power) / 2000, 1) for power in powers} == dict.fromkeys(
        (16, 32, 64, 128, 256), 0.2
    )
    assert all(type(power) is int for power in powers)
    assert statistics.median(drawn(Range(low=1e-5, high=0.1, log=True), "learning_rate")) == pytest.approx(
        1e-3, rel=0.3
    )
    assert statistics.mean(drawn(Range(low=0, high=0.5), "dropout")) == pytest.approx(0.25, rel=0.1)
    assert set(drawn(Range(low=10, high=30, step=10), "epochs")) == {10, 20, 30}
    assert set(drawn(Range(low=1, high=4), "epochs")) == {1, 2, 3, 4}
    assert statistics.median(drawn(Range(low=1, high=10_000, log=True), "epochs")) == pytest.approx(100, rel=0.3)
    ones = drawn(Range(low=1, high=2, log=True), "epochs").count(1)
    assert ones / 2000 == pytest.approx(0.683, abs=0.04)  # log(1.5 / 0.5) of log(2.5 / 0.5)
    assert set(drawn(Choices(choices=["lenet", "cnn1"]), "model")) == {"lenet", "cnn1"}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks that were timed, in place of timing them."""
    networks: list[str] = []

    def measure(network: str, *, device: torch.device, precision: str) -> Speed:
        networks.append(network)
        return Speed(0.001, 0.010)

    monkeypatch.setattr(cost, "_measure", measure)
    return networks


def speeds(*networks: str, cache: Path, threads: int = 1, say: Callable[[str], None] = print) -> Speeds:
    return measure_speeds(networks, device=CPU, precision="fp32", threads=threads, cache=cache, say=say)


def test_a_network_is_timed_once(timed: list[str], tmp_path: Path) -> None:
    first = speeds("lenet", "cnn3", cache=tmp_path)
    assert sorted(timed) == ["cnn3", "lenet"]
    assert speeds("lenet", "cnn3", cache=tmp_path) == first
    assert len(timed) == 2
    speeds("lenet", "cnn1", cache=tmp_path)
    assert timed[2:] == ["cnn1"]


def test_other_threads_are_another_machine(timed: list[str], tmp_path: Path) -> None:
    speeds("lenet", cache=tmp_path, threads=1)
    speeds("lenet", cache=tmp_path, threads=2)
    speeds("lenet", cache=tmp_path, threads=1)
    assert timed == ["lenet", "lenet"]


def test_deeper_vggs_follow_from_vgg11(timed: list[str], tmp_path: Path) -> None:
    found = speeds("vgg16", "vgg13", cache=tmp_path).networks
    assert timed == ["vgg11"]
    assert set(found) == {"vgg13", "vgg16"}
    assert found["vgg16"].image == pytest.approx(0.001 * 313_457_544 / 153_025_416)
    assert found["vgg13"].step == pytest.approx(0.010 * 228_522_888 / 153_025_416)
    speeds("vgg11", "vgg16", cache=tmp_path)
    assert timed == ["vgg11"]


def stored(value: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(dict.fromkeys(json.loads(text), value))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: "\x00\xff",
        stored(3),
        stored({"lenet": [1]}),
        stored({"lenet": [1, "x"]}),
        stored({"lenet": [-1, 0.1]}),
        stored({"lenet": [float("nan"), 0.1]}),
        stored({"lenet": [float("inf"), 0.1]}),
        stored({"lenet": None}),
    ],
)
def test_a_damaged_file_is_measured_again(timed: list[str], tmp_path: Path, damage: Callable[[str], str]) -> None:
    first = speeds("lenet", cache=tmp_path)
    path = tmp_path / "speeds.json"
    path.write_bytes(damage(path.read_text()).encode("latin-1"))
    assert speeds("lenet", cache=tmp_path) == first
    assert timed == ["lenet", "lenet"]
    speeds("lenet", cache=tmp_path)
    assert timed == ["lenet", "lenet"]


def test_a_folder_that_cannot_be_written_is_no_error(timed: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert speeds("lenet", cache=tmp_path / "file").per_image("lenet", 10) == pytest.approx(0.002)


def test_a_training_step_is_what_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def step(self: Group, images: torch.Tensor, labels: torch.Tensor) -> None:
        assert self.network.training
        assert images.shape == (len(labels), 3, 32, 32)
        time.sleep(0.01 + 0.001 * len(images))

    monkeypatch.setattr(Group, "step", step)
    found = speeds("lenet", cache=tmp_path).networks["lenet"]
    assert (found.image, found.step) == pytest.approx((0.001, 0.01), rel=0.3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_real_step_takes_time(tmp_path: Path, precision: str) -> None:
    found = measure_speeds(["lenet"], device=CPU, precision=precision, threads=1, cache=tmp_path)
    assert 1e-6 < found.per_image("lenet", 64) < 1


def test_estimates_share_the_work_among_workers(
    timed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cost, "resolve_device", lambda name: CPU)
    monkeypatch.setattr(cost, "resolve_precision", lambda device: ("fp32", 1.0))
    monkeypatch.setattr(cost, "default_workers", lambda name: 4)
    monkeypatch.setattr(cost, "available_cores", lambda: 4)
    monkeypatch.setattr(cost, "default_cache", lambda: tmp_path)
    sweeps = {
        "many": sweep(trials=8, fixed=FIXED, space=RATE),
        "few": sweep(trials=2, fixed=FIXED | {"model": "cnn3", "batch_norm": True}, space=RATE),
    }
    said: list[str] = []
    seconds = estimates(sweeps, say=said.append)
    assert seconds == pytest.approx({"many": 8 / 4 * 4 * epoch(1000, 32), "few": 4 * epoch(1000, 32)})
    assert said == ["timing a training step of each network, once on this machine"]
    assert sorted(timed) == ["cnn3+batch_norm", "lenet"]
    assert torch.get_num_threads() == 1
    assert estimates(sweeps, say=said.append) == seconds
    assert len(said) == 1
    assert estimates({}, say=said.append) == {}
