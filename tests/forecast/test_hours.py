"""So many hours: what is planned for them fits, what is cut is said, and a search ends when its time is over."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.curve import EpochResult
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.forecast import hours as planning
from cifar_sweep.forecast.costs import Costs, NetworkCosts, note_costs
from cifar_sweep.forecast.hours import ENOUGH, FLOORS, in_time, plan_hours, replan, shortened
from cifar_sweep.search.choice import Choice, Situation
from cifar_sweep.study import study as studies
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.hours import Hours, wider
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.file import load, longest, names
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
RATE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}}
IMAGES = 40_000
RANDOM = {"strategy": "optuna", "pruner": "none", "sampler": "random"}


def sweep(fixed: dict[str, Any] | None = None, space: dict[str, Any] | None = None, **keys: Any) -> Sweep:
    plain = {"name": "s", "trials": 40, "strategy": "auto", "fixed": fixed or {}, "space": RATE | (space or {})}
    return parse(plain | keys, where="test")


def costs(seconds: float = 1e-4, *, workers: int = 2, model: str = "convnet", images: int = IMAGES) -> Costs:
    """A machine that takes so many seconds for an image, in groups of any size a quarter of that for each trial."""
    known = NetworkCosts(image={1: seconds, 8: seconds / 4}, step={1: 0.0, 8: 0.0}, sizes={64: 8}, checkpoint=0)
    return Costs(networks={model: known}, workers=workers, start=1.0, trial=0, report=0, train_images=images)


LONG = {"model": "convnet", "batch_norm": False, "epochs": 30, "gamma": 0.2, "step_size": 20}


@pytest.mark.parametrize("seconds", [1e-5, 1e-4, 1e-3, 4e-3])
@pytest.mark.parametrize("hours", [0.25, 1, 8])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_plan_fits_and_its_floors_hold(seconds: float, hours: float, workers: int) -> None:
    whole, known = sweep(LONG), costs(seconds, workers=workers)
    plan = plan_hours(whole, known, hours)
    epochs, images = longest(plan.sweep, "epochs"), longest(plan.sweep, "train_images") or IMAGES
    assert 1 <= epochs <= 30
    assert 500 <= images <= IMAGES
    assert plan.uncuts == bool(shortened(whole, plan.sweep, images=IMAGES))
    assert 0 <= plan.reserve <= (planning.UNCUT_SHARE if plan.uncuts else planning.CONFIRMED_SHARE) * 3600 * hours
    assert (plan.sweep.confirm is None) == (plan.reserve == 0)
    assert plan.sweep.trials == plan.trials >= 1
    # All trials in groups of eight, each half trained, as strategy auto has it.
    trained = 0.4 * epochs * (images + 0.35 * images / 4) * seconds / 4
    assert plan.trials * trained / workers + plan.reserve < 3600 * hours
    if plan.trials >= ENOUGH and epochs < 30:
        more = plan_hours(whole, known, 2 * hours)
        assert longest(more.sweep, "epochs") >= epochs
        assert (longest(more.sweep, "train_images") or IMAGES) >= images
    if epochs < FLOORS[ENOUGH][1]:
        assert plan.trials < ENOUGH


def test_whole_trials_stay_whole_where_enough_of_them_fit() -> None:
    plan = plan_hours(sweep(LONG), costs(1e-5), 8)
    assert shortened(sweep(LONG), plan.sweep, images=IMAGES) == ""
    assert plan.sweep.identity() == sweep(LONG).identity()
    assert plan.trials > 40, "as many as the time has room for"
    assert plan.sweep.confirm == (5, 3)


def test_what_is_cut_is_said_and_the_schedule_keeps_its_meaning() -> None:
    plan = plan_hours(sweep(LONG, description="what for"), costs(4e-3), 1)
    fixed, words = plan.sweep.fixed, shortened(sweep(LONG), plan.sweep, images=IMAGES)
    assert fixed["epochs"] < 30
    assert fixed["step_size"] == round(20 * fixed["epochs"] / 30)
    assert f"{fixed['epochs']} of 30 epochs" in words
    assert f"{fixed['train_images']:,} of 40,000 training images" in words
    assert plan.sweep.description == f"what for; cut to 1 h: {words}"
    unset = {key: value for key, value in LONG.items() if key != "step_size"}
    assert plan_hours(sweep(unset), costs(4e-3), 1).sweep.fixed["step_size"] == fixed["step_size"], "20 is its default"


@pytest.mark.parametrize(
    ("schedule", "lengths", "expected"),
    [
        ("cosine", {"cosine_epochs": 20, "warmup_epochs": 5}, {"cosine_epochs": 20, "warmup_epochs": 5}),
        ("multistep", {"milestones": "10,20", "gamma": 0.5}, {"milestones": "10,20"}),
        ("warm_restarts", {}, {"restart_epochs": 10}),
        ("plateau", {"plateau_patience": 3}, {"plateau_patience": 3}),
        ("exponential", {"gamma": 0.9}, {}),
    ],
)
def test_the_lengths_of_any_schedule_are_cut_alike(
    schedule: str, lengths: dict[str, Any], expected: dict[str, Any]
) -> None:
    fixed = {"model": "convnet", "batch_norm": False, "epochs": 30, "schedule": schedule, **lengths}
    found = plan_hours(sweep(fixed), costs(4e-3), 1).sweep.fixed
    share = int(found["epochs"]) / 30
    assert share < 1
    for name, value in expected.items():
        cut_alike = ",".join(str(max(1, round(share * int(part)))) for part in str(value).split(","))
        assert str(found[name]) == cut_alike
    assert found.keys() - {"train_images", "validation_images"} == fixed.keys() | expected.keys()


def test_epochs_that_are_searched_are_cut_at_their_upper_end_and_hand_points_above_are_left_out() -> None:
    epochs = {"epochs": {"low": 3, "high": 300, "log": True}}
    points = [{"epochs": 5, "label": "short"}, {"epochs": 300, "label": "long"}]
    plan = plan_hours(sweep({"model": "convnet", "batch_norm": False}, epochs, enqueue=points), costs(4e-3), 1)
    high = longest(plan.sweep, "epochs")
    assert 5 <= high < 300
    assert [point.label for point in plan.sweep.enqueue] == ["short"]
    fixed = {key: value for key, value in LONG.items() if key != "step_size"}
    steps = plan_hours(sweep(fixed, {"step_size": {"low": 5, "high": 40, "step": 5}}), costs(4e-3), 1)
    assert longest(steps.sweep, "epochs") == 30, "StepLR's searched steps would mean something else"
    assert longest(steps.sweep, "train_images") < IMAGES


def test_too_little_time_for_any_trial_is_refused_in_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"--hours 0.001: no trial of 's' .* accepted: from about (\d.\d+)\.") as error:
        plan_hours(sweep(LONG), costs(0.1), 0.001)
    least = float(str(error.value).rpartition(" ")[2].rstrip("."))
    assert plan_hours(sweep(LONG), costs(0.1), least).trials >= 1


@pytest.mark.parametrize("name", ["reports", "lr_batch"])
def test_the_shipped_sweeps_are_cut_as_their_kind_allows(name: str) -> None:
    whole = load(names()[name])
    plan = plan_hours(whole, costs(1e-4, model="cnn3"), 2)
    assert plan.sweep.given == whole.given
    if whole.given:
        assert (plan.sweep.size, plan.sweep.confirm) == (whole.size, None)
        assert all(point.shortened for point in plan.sweep.enqueue if point.params()["epochs"] == 300)
    else:
        assert plan.sweep.space == whole.space


# --- While it runs ---------------------------------------------------------------------------------------------------


class Clock:
    """The time, as the study and its plan see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        for module in (planning, studies):
            monkeypatch.setattr(module.time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def alternately(now: Situation) -> Choice:
    """New points and frozen trials in turn, as far as there is time for them."""
    frozen = [each for each in now.courses if each.frozen and now.in_time(each.shape, each.done)]
    shape = now.shape_of({})
    if now.room and now.in_time(shape, 0) and len(frozen) < 6:
        return Choice(new=[{"learning_rate": 1e-3}] * min(now.size(shape), now.room, now.in_time(shape, 0)))
    alike = [each.number for each in frozen if each.done == frozen[0].done]
    return Choice(thawed=alike[: now.in_time(frozen[0].shape, frozen[0].done)] if frozen else [])


class Simulated:
    """A study in so many hours whose workers train on a clock that stands still in between."""

    def __init__(self, storage: Storage, name: str, clock: Clock, plan: Sweep, known: Costs, **hours: Any) -> None:
        self.clock, self.seconds = clock, 0.0
        hours = {"asked": plan.identity()} | hours
        self.study = open_or_resume(storage, name, plan, data=DATA, hours=Hours(**hours))
        note_costs(self.study, known)
        self.worker = Worker(Owner.current(), "cpu (test)", 1, "fp32")

    def claim(self) -> list[Claim]:
        self.study.start_clock()
        known = {"in_time": in_time(self.study), "trials": replan(self.study)}
        return self.study.claim(self.worker, size=lambda _: 8, choose=alternately, **known)

    def run(self, seconds_of: Callable[[Shape, int], float]) -> None:
        """Work until the study is settled, each epoch of a group taking as long as that."""
        for _ in range(500):
            if self.study.settle():
                return
            if claims := self.claim():
                self._train(claims, seconds_of)
        raise AssertionError("it does not end")

    def _train(self, claims: Sequence[Claim], seconds_of: Callable[[Shape, int], float]) -> None:
        end = self.study.search_end() or 0.0
        curves = {claim.number: list(claim.curve) for claim in claims}
        for epoch in range(len(claims[0].curve) + 1, claims[0].until + 1):
            took = seconds_of(claims[0].config.shape, len(claims))
            if self.clock.now + took > end:  # interrupted in its middle
                self.clock.now = end
                break
            self.clock.now += took
            point = EpochResult(epoch, 1.0, 0.5, 1.0, 0.1, 1e-3, took / len(claims), len(claims)).to_dict()
            for claim in claims:
                curves[claim.number].append(point)
                self.study.report(claim, curves[claim.number])
        for claim in claims:
            if len(curves[claim.number]) == claim.config.shape.epochs:
                self.study.complete(claim, 0.5)
            else:
                self.study.release(claim)


@pytest.mark.parametrize(
    ("slowness", "keys"),
    [(0.5, {}), (3.0, {}), (0.5, RANDOM), (2.0, RANDOM)],
    ids=["fast", "slow", "random", "random-slow"],
)
def test_a_search_ends_in_time_however_fast_the_machine_is(
    slowness: float, keys: dict[str, Any], storage: Storage, name: str, clock: Clock
) -> None:
    chance = random.Random(str((slowness, *keys)))
    known = costs(16e-3, workers=1)
    plan = plan_hours(sweep(LONG, **keys), known, 0.25)
    begun = clock.now
    found = Simulated(storage, name, clock, plan.sweep, known, hours=0.25, reserve=plan.reserve)
    found.run(lambda shape, members: slowness * known.epoch(shape, members) * chance.uniform(0.9, 1.1))
    study = found.study
    assert study.over == study.reason == "the time was over"
    assert study.state == "finished"
    summary = study.summary()
    assert summary["trials"]["complete"] >= 1
    assert summary["trials"]["complete"] + summary["trials"]["pruned"] == summary["budget"]
    assert begun + 0.5 * (900 - plan.reserve) <= clock.now <= begun + 900
    seeds = [trial for trial in study.trials() if trial.confirms is not None]
    spent = sum(trial.seconds for trial in study.trials() if trial.confirms is None)
    # Until a trial is complete the confirmation's time is the search's.
    most = 900 - plan.reserve if slowness < 1 else 900
    assert 0.5 * (900 - plan.reserve) <= spent <= most
    assert {seed.state for seed in seeds} <= ({"complete"} if slowness < 1 else {"complete", "failed"})
    late = [trial.reason for trial in study.trials() if trial.state == "pruned"]
    assert all(reason.endswith(": the time was over") for reason in late)


@pytest.mark.parametrize("slowness", [0.7, 1.0, 3.0])
def test_the_best_are_confirmed_in_the_time_that_is_left_for_it(
    slowness: float, storage: Storage, name: str, clock: Clock
) -> None:
    known = costs(4e-3, workers=1)
    plan = plan_hours(sweep(LONG), known, 1.0)
    assert plan.sweep.confirm
    begun = clock.now
    found = Simulated(storage, name, clock, plan.sweep, known, hours=1.0, reserve=plan.reserve)
    found.run(lambda shape, members: slowness * known.epoch(shape, members))
    study = found.study
    seeds = [trial for trial in study.trials() if trial.confirms is not None]
    assert clock.now <= begun + 3600
    assert study.state == "finished"
    assert study.summary()["trials"]["complete"] >= 1, "fresh seeds are not counted among these"
    assert not any(seed.state == "waiting" for seed in seeds), "those that there is no time for are given up"
    if slowness <= 1.0:
        most, each = plan.sweep.confirm
        assert len(seeds) == most * each
        assert {seed.state for seed in seeds} == {"complete"}
        assert study.summary()["confirmation"]


@pytest.mark.parametrize(("slowness", "is_whole"), [(0.7, True), (1.0, True), (1.6, False)])
def test_the_best_of_a_search_that_was_cut_are_trained_without_the_cuts(
    slowness: float, is_whole: bool, storage: Storage, name: str, clock: Clock
) -> None:
    whole, known = sweep(LONG), costs(1e-3, workers=1)
    plan = plan_hours(whole, known, 1.0)
    assert plan.uncuts
    assert shortened(whole, plan.sweep, images=IMAGES)
    assert plan.reserve <= 1800
    begun, asked = clock.now, whole.identity()
    hours = {"hours": 1.0, "reserve": plan.reserve, "asked": asked, "uncuts": True}
    found = Simulated(storage, name, clock, plan.sweep, known, **hours)
    found.run(lambda shape, members: slowness * known.epoch(shape, members))
    study = found.study
    assert study.state == "finished"
    assert clock.now <= begun + 3600
    seeds = [trial for trial in study.trials() if trial.confirms is not None and trial.state == "complete"]
    assert seeds
    for seed in seeds:
        assert seed.config
        assert seed.confirms is not None
        of = study.trials()[seed.confirms].config
        assert of
        assert seed.config.knobs.seed != of.knobs.seed
        assert ((seed.epochs, seed.config.knobs.step_size) == (30, 20)) == is_whole
        assert of.shape.epochs < seed.epochs <= 30
        assert seed.config.shape.train_images == seed.config.shape.validation_images == 0
        assert seed.uncut
    assert study.ranked()[0].confirms is not None, "one of them is what is taken away"
    summary = study.summary()
    assert "without the cuts of the search: 50.00" in summary["confirmation"]["text"]
    assert planning.uncut(study, study.ranked()[0])[0] == ({} if is_whole else {"epochs": 30, "step_size": 20})


@pytest.mark.parametrize("slowness", [0.1, 0.3])
def test_time_that_is_left_goes_to_more_of_the_best(slowness: float, storage: Storage, name: str, clock: Clock) -> None:
    whole, known = sweep(LONG), costs(1e-3, workers=1)
    plan = plan_hours(whole, known, 1.0)
    assert plan.uncuts
    assert plan.sweep.confirm
    begun = clock.now
    hours = {"hours": 1.0, "reserve": plan.reserve, "asked": whole.identity(), "uncuts": True}
    few = plan.sweep.model_copy(update={"confirm": (2, 1)})
    found = Simulated(storage, name, clock, few, known, **hours)
    found.run(lambda shape, members: slowness * known.epoch(shape, members))
    seeds = [trial for trial in found.study.trials() if trial.confirms is not None and trial.state == "complete"]
    assert len(seeds) > 2
    assert all(seed.uncut for seed in seeds)
    assert clock.now <= begun + 3600
    alone = 30 * slowness * known.epoch(seeds[0].config.shape, 1) if seeds[0].config else 0.0
    assert clock.now + 1.5 * alone > begun + 3600 or found.study.sweep.confirm == (5, 3)
    assert found.study.state == "finished"
    assert found.study.summary()["confirmation"]["candidates"]


def test_the_next_wider_confirmation() -> None:
    assert [wider(pair) for pair in ((1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (3, 3), (5, 3))] == [
        (2, 1), (3, 1), (3, 2), (3, 2), (3, 3), (5, 3), None,
    ]  # fmt: skip


def test_of_the_best_without_the_cuts_those_win_that_there_was_time_for(
    storage: Storage, name: str, clock: Clock
) -> None:
    whole, known = sweep(LONG), costs(4e-4, workers=1)
    plan = plan_hours(whole, known, 1.0)
    asked = {"hours": 1.0, "reserve": plan.reserve, "asked": whole.identity(), "uncuts": True}
    several = plan.sweep.model_copy(update={"confirm": (5, 3)})
    found = Simulated(storage, name, clock, several, known, **asked)
    found.run(lambda shape, members: 1.2 * known.epoch(shape, members))
    seeds = [trial for trial in found.study.trials() if trial.confirms is not None]
    assert {seed.state for seed in seeds} == {"complete", "failed"}
    late = [seed for seed in seeds if seed.state == "failed"]
    assert {(seed.reason, seed.state_words) for seed in late} == {("the time was over", "not trained")}
    winner = found.study.ranked()[0]
    assert winner.confirms in {seed.confirms for seed in seeds if seed.state == "complete"}
    assert found.study.finished()


def test_a_trial_without_the_cuts_is_as_long_as_there_is_time_for_then_has_fewer_images() -> None:
    whole = sweep(LONG)
    short = plan_hours(whole, costs(4e-3), 1.0).sweep
    config = TrialConfig.from_params(short.fixed, classes=10, precision="fp32", data_seed=0, seed=0)
    own, hours = config.shape, Hours(1.0, whole.identity())

    def found(most: int) -> dict[str, Any]:
        """What it is set to where there is time to train on so many images, each counted as often as it is seen."""
        return hours.fitting(config, IMAGES, lambda shape: shape.epochs * (shape.train_images or IMAGES) <= most)

    all_images = {"train_images": 0, "validation_images": 0}
    assert found(30 * IMAGES) == {"epochs": 30, "step_size": 20} | all_images
    assert found(15 * IMAGES) == {"epochs": 15, "step_size": 10} | all_images
    assert own.epochs < 30
    fewer = found(own.epochs * 20_000)
    assert 19_500 < fewer["train_images"] <= 20_000
    least = found(own.epochs * own.train_images)
    assert (fewer["epochs"], least["epochs"], least["train_images"]) == (own.epochs, own.epochs, own.train_images)
    assert found(own.epochs * own.train_images - 1) == {}, "then it is confirmed as it was"


def test_a_length_that_was_searched_stays_and_the_images_are_fewer() -> None:
    whole = sweep({"model": "convnet", "batch_norm": False}, space={"epochs": {"low": 10, "high": 100}})
    config = TrialConfig.from_params(
        {"model": "convnet", "epochs": 20, "train_images": 4000}, classes=10, precision="fp32", data_seed=0, seed=0
    )
    hours = Hours(1.0, whole.identity())
    found = hours.fitting(config, IMAGES, lambda shape: 0 < shape.train_images <= 20_000)
    assert found.keys() == {"train_images"}
    assert 19_500 < found["train_images"] <= 20_000


def test_nothing_is_trained_again_without_cuts_that_there_are_not() -> None:
    assert not plan_hours(sweep(LONG), costs(1e-5), 8).uncuts
    assert not plan_hours(load(names()["reports"]), costs(1e-4, model="cnn3"), 2).uncuts


def test_a_study_whose_time_is_over_ends_when_its_command_is_given_again(
    storage: Storage, name: str, clock: Clock
) -> None:
    known = costs(8e-3, workers=1)
    plan = plan_hours(sweep(LONG), known, 0.5)
    killed = Simulated(storage, name, clock, plan.sweep, known, hours=0.5, reserve=plan.reserve)
    killed._train(killed.claim(), known.epoch)
    deadline = killed.study.hours.deadline if killed.study.hours else None
    clock.now += 3600
    again = Simulated(storage, name, clock, plan.sweep, known, hours=0.5, reserve=1.0)
    assert again.study.hours
    assert again.study.hours.deadline == deadline, "its end stays"
    again.run(known.epoch)
    assert again.study.summary()["trials"]["pruned"] == 8
    assert again.study.state == "finished"
    assert {trial.reason for trial in again.study.trials()} == {"stopped after epoch 1: the time was over"}


def test_a_study_keeps_its_cut_and_takes_no_other_hours(storage: Storage, name: str) -> None:
    whole, known = sweep(LONG), costs(4e-3)

    def opened(hours: float | None, seconds: float = 4e-3) -> SweepStudy:
        if hours is None:
            return open_or_resume(storage, name, whole, data=DATA)
        plan = plan_hours(whole, costs(seconds), hours)
        asked = Hours(hours, whole.identity(), plan.reserve)
        return open_or_resume(storage, name, plan.sweep, data=DATA, hours=asked)

    first = opened(1.0)
    assert first.hours
    assert first.hours.deadline is None, "no worker has begun"
    assert first.search_end() is None
    again = opened(1.0, seconds=9e-3)
    assert again.sweep == first.sweep, "the machine seems slower, but the study stays what it is"
    for other in (2.0, None):
        with pytest.raises(
            StudyError, match=r"was begun with --hours 1, which decides .* run with --hours 1 to continue"
        ):
            opened(other)
    shorter = parse(whole.model_dump(mode="json") | {"fixed": LONG | {"epochs": 20}}, where="test")
    plan = plan_hours(shorter, known, 1.0)
    with pytest.raises(StudyError, match="another fixed"):
        open_or_resume(storage, name, plan.sweep, data=DATA, hours=Hours(1.0, shorter.identity(), plan.reserve))


def test_less_and_less_fits_as_the_end_comes_near(storage: Storage, name: str, clock: Clock) -> None:
    known = costs(1e-3, workers=1)
    study = Simulated(storage, name, clock, sweep(LONG), known, hours=1.0, reserve=0.0).study
    shape = study.claim(
        Worker(Owner.current(), "cpu", 1, "fp32"), choose=lambda _: Choice(new=[{"learning_rate": 1e-3}])
    )[0].config.shape
    assert in_time(study)(shape, 0) > 100, "nothing ends it before its clock has started"
    study.start_clock()
    study.start_clock()
    end = study.search_end()
    assert end == clock.now + 3600
    found = [in_time(study, now=end - seconds)(shape, 0) for seconds in (1e9, 20_000, 4000, 1100, 0, -1)]
    assert found == sorted(found, reverse=True)
    assert found[0] == 32
    assert found[-3:] == [0, 0, 0], "a whole trial alone takes 1,300 s"
    assert in_time(study, now=end - 1100)(shape, 10), "one of which a third is done takes less"
    frozen = Simulated(storage, name, clock, sweep(LONG), known, hours=1.0, reserve=0.0)
    frozen._train(
        frozen.study.claim(frozen.worker, choose=lambda _: Choice(new=[{"learning_rate": 1e-3}])), known.epoch
    )
    assert in_time(study, now=end - 2000)(shape, 0) == 0, "as long as no trial is complete, none begins so late"
    assert in_time(study, now=end - 2000)(shape, 10)


def test_what_was_cut_is_told_for_the_winner(storage: Storage, name: str) -> None:
    whole, known = sweep(LONG), costs(4e-3)
    plan = plan_hours(whole, known, 1.0)
    study = open_or_resume(storage, name, plan.sweep, data=DATA, hours=Hours(1.0, whole.identity(), plan.reserve))
    worker = Worker(Owner.current(), "cpu (test)", 1, "fp32")
    study.start_clock()
    [claim] = study.claim(worker, choose=lambda _: Choice(new=[{"learning_rate": 1e-3}]))
    [trial] = [each for each in study.trials() if each.number == claim.number]
    assert planning.uncut(study, trial)[1] == 0.0, "it is not known how fast this machine is"
    note_costs(study, known)
    settings, seconds = planning.uncut(study, trial)
    assert settings.items() >= {"epochs": LONG["epochs"], "train_images": 0}.items()
    assert all(trial.settings[name] != value for name, value in settings.items())
    whole_shape = replace(claim.config.shape, train_images=0, validation_images=0)
    assert seconds == pytest.approx(30 * known.epoch(whole_shape, 1))
    plain = open_or_resume(storage, f"{name}-plain", plan.sweep, data=DATA)
    assert planning.uncut(plain, trial) == ({}, 0.0)
