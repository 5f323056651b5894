"""`plan` tries a sweep's own groups, and says how long it takes and what of it fits into some hours."""

import json
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_sweep.config import TrialConfig
from cifar_sweep.forecast.costs import END_SECONDS, Costs, NetworkCosts, Pace, Speed
from cifar_sweep.machine import rehearsal
from cifar_sweep.machine.groups import Groups
from cifar_sweep.machine.outlook import look_ahead
from cifar_sweep.machine.plan import Found, Plan
from cifar_sweep.machine.rehearsal import GroupSeconds, group_seconds, rehearse
from cifar_sweep.machine.speeds import Split
from cifar_sweep.machine.timing import Timer
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
BATCH = {"batch_size": {"low": 16, "high": 64, "base2": True}}
NETWORK = NetworkCosts(image={1: 1e-3}, step={1: 0.0}, sizes={16: 2}, checkpoint=0)
COSTS = Costs(networks={"lenet": NETWORK}, workers=2, train_images=400, start=0, trial=0, report=0)
EPOCH = 0.4 * (1 + 0.25 * 0.35)


def sweep(trials: int = 8, **keys: Any) -> Sweep:
    fixed = {"model": "lenet", "batch_size": 32, "epochs": 4}
    fixed = {name: value for name, value in fixed.items() if name not in keys.get("space", {})}
    return parse(
        {"name": "test", "trials": trials, "pruner": "none", "fixed": fixed, "space": RATE} | keys, where="test"
    )


def plan(costs: Costs = COSTS) -> Plan:
    return Plan(Split(2, 1), Groups(2), usual=2, seconds=10.0, gain=3.0, costs=costs, bound="the cores")


class Here:
    """A process pool that is this process: one call after another."""

    def __init__(self) -> None:
        self.called: list[tuple[Any, dict[str, Any]]] = []

    def together(self, function: Any, *calls: dict[str, Any]) -> list[Any]:
        self.called += [(function, call) for call in calls]
        if function is group_seconds:
            return [self.seconds(call["configs"]) for call in calls]
        return [function(**call) for call in calls]

    def seconds(self, configs: list[TrialConfig]) -> GroupSeconds:
        """An epoch takes twice as long as it was reckoned to take."""
        return GroupSeconds(begin=0.5, epoch=2 * COSTS.epoch(configs[0].shape, len(configs)), checkpoint=0.25)

    def groups(self) -> list[list[TrialConfig]]:
        """Those of the sweep; before them each worker trains one of its own."""
        tried = [call["configs"] for function, call in self.called if function is group_seconds]
        assert {len(configs) for configs in tried[:2]} == {1}
        return tried[2:]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    pool = Here()

    monkeypatch.setattr(rehearsal, "process_pool", lambda _size: nullcontext(pool))
    return pool


def tried(chosen: Sweep, costs: Costs = COSTS) -> Pace:
    planned = replace(plan(costs), found=Found("a model", "fp32", "it is", None))
    return rehearse(chosen, planned, source="synthetic:500", device="cpu", classes=10, started=3.0)


def test_a_rehearsal_corrects_the_costs(here: Here, small_data: Any) -> None:
    costs = tried(sweep()).costs
    network = costs.networks["lenet"]
    assert network.image == {1: pytest.approx(2e-3)}
    assert (network.checkpoint, network.sizes) == (0.25, NETWORK.sizes)
    assert costs.start > 3.0
    assert costs.trial == 0.25, "half of what a group of two begins with"


def test_the_groups_that_take_most_of_the_time_are_tried_by_all_workers(here: Here, small_data: Any) -> None:
    tried(sweep(30, space=RATE | BATCH))
    groups = here.groups()
    assert groups[::2] == groups[1::2], "once by each worker"
    assert {configs[0].shape.batch_size for configs in groups} == {16, 32, 64}
    assert {len(configs) for configs in groups} == {2}
    assert all(len({config.shape for config in configs}) == 1 for configs in groups)
    assert all(len({config.knobs for config in configs}) == len(configs) for configs in groups)


def test_a_network_that_would_take_long_is_tried_on_few_images(here: Here, small_data: Any) -> None:
    slow = NETWORK.model_copy(update={"image": {1: 0.02}})
    tried(sweep(), COSTS.model_copy(update={"networks": {"lenet": slow}}))
    shape = here.groups()[0][0].shape
    assert 10 <= shape.train_images <= 20
    assert shape.batch_size <= shape.train_images
    assert 0 < shape.validation_images < shape.train_images


def test_a_given_point_is_tried_as_it_is(here: Here, small_data: Any) -> None:
    points = [{"label": str(k), "batch_size": batch, "activation": "tanh"} for k, batch in enumerate([16, 64])]
    space = BATCH | {"activation": {"choices": ["relu", "tanh"]}}
    raw = sweep(space=space, fixed={"model": "lenet", "epochs": 2}).model_dump(exclude={"trials"})
    tried(parse(raw | {"sampler": "given", "enqueue": points}, where="test"))
    assert {configs[0].shape.activation for configs in here.groups()} == {"tanh"}


def test_a_rehearsal_leaves_nothing(
    here: Here, small_data: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    tried(sweep())
    assert set(tmp_path.iterdir()) == before


def ahead(chosen: Sweep, *, hours: float | None = None, **changes: Any) -> dict[str, Any]:
    pace = Pace(COSTS.model_copy(update={"fixed": True, **changes}), doubt=0.0)
    return look_ahead(chosen, plan(), pace, hours=hours)


def test_the_time_is_from_the_command_to_its_end() -> None:
    answer = ahead(sweep(), start=5.0)
    assert answer["seconds_unpruned"]["likely"] == pytest.approx(5 + 2 * 2 * 4 * EPOCH + END_SECONDS, abs=0.1)
    assert answer["seconds_pruned"] is None
    assert answer["plan"] == {
        "workers": 2, "threads": 1, "devices": 1, "group": 2, "gain": 3.0, "bound": "the cores",
    }  # fmt: skip
    assert answer["seconds_confirmation"] is None
    assert "hours" not in answer


def test_the_confirmation_comes_on_top() -> None:
    """The best two under two fresh seeds each: one group of four, for four epochs."""
    answer = ahead(sweep(confirm=[2, 2]))
    assert answer["seconds_confirmation"] == pytest.approx(4 * 4 * EPOCH, abs=0.1)
    assert answer["seconds_unpruned"] == ahead(sweep())["seconds_unpruned"]


def test_with_a_pruner_both_times_are_said() -> None:
    answer = ahead(sweep(40, pruner={"name": "median", "startup_trials": 4}))
    assert answer["seconds_pruned"]["high"] < answer["seconds_unpruned"]["low"]


@pytest.mark.parametrize(("seconds", "trials", "epochs"), [(1.6, 0, 0), (5.2, 4, 2), (8.6, 8, 4), (100, 8, 4)])
def test_what_fits(seconds: float, trials: int, epochs: int) -> None:
    """Four groups of two by two workers: two rounds of 2 * 4 epochs of 0.435 s, 7 s in all, and 1.5 s to end."""
    fits = ahead(sweep(), hours=seconds / 3600)["hours"]
    assert (fits["trials_unpruned"], fits["epochs_that_fit"], fits["epochs"]) == (trials, epochs, 4)


def test_a_real_group_is_timed(tmp_path: Path, small_data: Any) -> None:
    params = {"model": "lenet", "batch_size": 20, "epochs": 2, "train_images": 100, "validation_images": 20}
    configs = [
        TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=seed) for seed in range(2)
    ]
    found = group_seconds(configs, source="synthetic:500", folder=str(tmp_path), threads=1, device=torch.device("cpu"))
    assert all(0 <= part < 5 for part in found)
    assert found.epoch > 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def steps(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed."""

    def measure(timer: Timer, networks: Any, splits: Any, **_: Any) -> Any:
        return {split: {network: {1: Speed(1e-4, 0.0)} for network in networks} for split in splits}

    monkeypatch.setattr(Timer, "measure", measure)


@pytest.mark.slow
def test_plan_says_how_long_a_sweep_takes(steps: None, tiny_sweep: Path, cli: Any, tmp_path: Path) -> None:
    files = set(tmp_path.iterdir())
    options = ("plan", tiny_sweep, "--data", "synthetic:500", "--workers", 1, "--threads", 1, "--group", 2)
    told = cli(*options, "--hours", 1, "--confirm", "2,2")
    assert told.exit_code == 0, told.err
    assert "to confirm the best" in told.out
    assert "sweep tiny: 4 trials of at most 3 epochs on synthetic images (500 + 100)" in told.out
    assert "plan: 1 worker x 2 trials" in told.out
    assert "in 60 min: all 4 trials" in told.out
    assert set(tmp_path.iterdir()) == files, "nothing was made"


@pytest.mark.slow
def test_plan_as_json(steps: None, tiny_sweep: Path, cli: Any) -> None:
    options = ("--workers", 1, "--threads", 1, "--group", 1, "--trials", 400, "--set", "pruner=median")
    told = cli("plan", tiny_sweep, "--data", "synthetic:500", *options, "--hours", 0.001, "--json")
    answer = json.loads(told.out)
    assert (answer["trials"], answer["pruner"], answer["plan"]["workers"]) == (400, "median", 1)
    assert (
        answer["seconds_unpruned"]["low"] <= answer["seconds_unpruned"]["likely"] <= answer["seconds_unpruned"]["high"]
    )
    assert answer["seconds_pruned"]["likely"] < answer["seconds_unpruned"]["likely"]
    assert answer["hours"]["trials_unpruned"] < 400
    assert answer["data"] == "synthetic images (500 + 100)"


@pytest.mark.slow
def test_a_preview_without_data_is_planned_on_synthetic_images(steps: None, tiny_sweep: Path, cli: Any) -> None:
    tiny_sweep.write_text(tiny_sweep.read_text() + "[preview]\ntrials = 2\nepochs = 1\ntrain_images = 100\n")
    told = cli("plan", tiny_sweep, "--preview", "--workers", 1, "--threads", 1, "--group", 1, "--json")
    assert json.loads(told.out)["data"].startswith("synthetic")


def test_plan_refuses_what_run_would(tiny_sweep: Path, cli: Any) -> None:
    refused = cli("plan", tiny_sweep, "--data", "synthetic:500", "--set", "batch_size=500")
    assert refused.exit_code == 2
    assert "batch_size = 500" in refused.err
