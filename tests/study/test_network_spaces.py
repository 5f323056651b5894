"""A study over networks by numbers: layers' own parameters, settings that leave no image, a group of one shape."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pytest
from optuna.trial import TrialState

from cifar_sweep.config import Shape
from cifar_sweep.errors import UsageError
from cifar_sweep.forecast.expected import shape_of
from cifar_sweep.parameters import Value
from cifar_sweep.search.choice import Situation
from cifar_sweep.search.chooser import Chooser
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
LAYERS = {
    "filters_3": {"low": 4, "high": 64},
    "filters_1": {"low": 4, "high": 64},
    "conv_layers": {"low": 1, "high": 3},
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
}
# Three poolings by four leave nothing of 32 pixels.
SHRINKING = {"pool_size": {"choices": [2, 4]}, "conv_layers": {"low": 1, "high": 3}, "stride": {"choices": [1, 2]}}


@pytest.fixture
def make(storage: Storage, name: str) -> Callable[..., SweepStudy]:
    def made(**tables: Any) -> SweepStudy:
        plain = {"name": "s", "trials": 24, "pruner": "none", "fixed": {"model": "cnn", "epochs": 3}}
        return open_or_resume(storage, name, parse(plain | tables, where="test"), data=DATA)

    return made


def trained(study: SweepStudy, *, size: int = 1) -> list[Claim]:
    worker = Worker(Owner(**asdict(Owner.current()) | {"token": "one"}), "cpu", 1, "fp32")
    found: list[Claim] = []
    while claims := study.claim(worker, size=lambda _: size, workers=1):
        for claim in claims:
            study.complete(claim, 0.5)
        found += claims
    return found


def test_a_layer_that_is_not_there_is_not_asked_for(make: Callable[..., SweepStudy]) -> None:
    study = make(space=LAYERS, sampler="random")
    trained(study)
    for trial in study.trials():
        assert ("filters_3" in trial.params) == (trial.params["conv_layers"] == 3)
        assert trial.settings["filters_1"] == trial.params["filters_1"]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_setting_that_leaves_no_image_is_told_with_its_reason_and_another_takes_its_place(
    make: Callable[..., SweepStudy], sampler: str
) -> None:
    study = make(space=SHRINKING, sampler=sampler)
    claims = trained(study)
    trials = study.trials()
    impossible = [trial for trial in trials if trial.state == "impossible"]
    assert impossible
    assert len(claims) == study.budget == 24
    assert len(trials) == 24 + len(impossible)
    assert all(trial.frozen.state is TrialState.PRUNED for trial in impossible), "the sampler learns of it"
    assert all("images of 32 pixels have nothing left after layer" in trial.reason for trial in impossible)
    assert study.summary()["trials"]["impossible"] == len(impossible)
    assert not any(claim.config.shape.fault for claim in claims)
    assert study.finished()


def test_a_space_with_hardly_a_network_that_leaves_anything_comes_to_an_end(make: Callable[..., SweepStudy]) -> None:
    rare: dict[str, Any] = {"pool_size": {"low": 2, "high": 8}, "stride": {"choices": [1, 2]}}
    rare["learning_rate"] = {"low": 0.1, "high": 0.2}
    study = make(space=rare, sampler="random", fixed={"model": "cnn", "epochs": 3, "conv_layers": 5})
    claims = trained(study)
    assert study.finished()
    assert 24 <= len(study.trials()) - len(claims) <= 48
    assert len(claims) < 12


def test_a_grid_leaves_them_out_of_its_groups(make: Callable[..., SweepStudy]) -> None:
    rates = {"learning_rate": {"choices": [0.1, 0.2]}}
    study = make(space=SHRINKING | rates, sampler="grid", trials=24)
    claims = trained(study, size=4)
    assert len(study.trials()) == 24
    assert study.finished()
    assert not study.missing()
    assert len(claims) == 24 - sum(trial.state == "impossible" for trial in study.trials()) < 24


def test_the_model_of_the_search_never_proposes_one() -> None:
    sweep = parse({"name": "s", "strategy": "auto", "fixed": {"model": "cnn"}, "space": SHRINKING}, where="test")

    def shape(point: Mapping[str, Value]) -> Shape:
        return shape_of({**sweep.fixed, **point})

    chooser = Chooser(sweep)
    choices = [chooser.choose(Situation([], lambda _: 8, 100, shape, seed)) for seed in range(20)]
    proposed = [point for choice in choices for point in choice.new]
    assert not any(shape(point).fault for point in proposed)
    assert len(proposed) > 20


def test_a_file_of_which_all_settings_leave_nothing_is_refused() -> None:
    fixed = {"model": "cnn", "image_size": 28, "pool_size": 4}
    with pytest.raises(UsageError, match=r"images of 28 pixels have nothing left after layer 3 of 3: kernel 3"):
        parse({"name": "s", "fixed": fixed | {"conv_layers": 3}, "space": {"stride": {"choices": [1, 2]}}}, where="t")


def test_a_list_says_how_many_layers_there_are(make: Callable[..., SweepStudy]) -> None:
    study = make(space={"filters": {"choices": [[8, 16], [4, 8, 16]]}}, sampler="random", trials=6)
    counts = {claim.trial.params["filters"]: claim.config.shape.conv_layers for claim in trained(study)}
    assert counts == {"8,16": 2, "4,8,16": 3}


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_lists_of_rates_that_say_how_many_layers_there_are_are_of_groups_of_their_own(
    make: Callable[..., SweepStudy], sampler: str
) -> None:
    rates = {"learning_rate": {"choices": [k / 100 for k in range(1, 9)]}}
    study = make(space=rates | {"conv_dropout": {"choices": [[0.1, 0.2], [0.3], [0.1, 0.2, 0.3]]}}, sampler=sampler)
    worker = Worker(Owner.current(), "cpu", 1, "fp32")
    while claims := study.claim(worker, size=lambda _: 8, workers=None):
        assert len({claim.config.shape for claim in claims}) == 1
        for claim in claims:
            study.complete(claim, 0.5)
    assert len({trial.settings["conv_layers"] for trial in study.trials()}) > 1


def test_the_model_of_the_search_chooses_groups_of_one_length_of_lists() -> None:
    rates = {"low": 1e-4, "high": 1e-2, "log": True}
    lists = {"conv_dropout": {"choices": [[0.1, 0.2], [0.1, 0.2, 0.3]]}, "learning_rate": rates}
    sweep = parse({"name": "s", "strategy": "auto", "fixed": {"model": "cnn"}, "space": lists}, where="test")

    def shape(point: Mapping[str, Value]) -> Shape:
        return shape_of({**sweep.fixed, **point})

    for seed in range(8):
        chosen = Chooser(sweep).choose(Situation([], lambda _: 8, 100, shape, seed)).new
        assert len(chosen) > len({shape(point) for point in chosen}) == 1
