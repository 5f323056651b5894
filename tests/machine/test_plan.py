"""How a machine is shared out for a sweep. Its times are made up: no process starts, and nothing is timed."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.errors import DeviceError
from cifar_sweep.forecast.costs import Costs, NetworkCosts, Speed
from cifar_sweep.machine import plan, processes, speeds, timing
from cifar_sweep.machine.groups import GROUP_SIZES, Groups
from cifar_sweep.machine.memory import member_bytes
from cifar_sweep.machine.plan import MEMORY_SHARE, SHORT_SECONDS, Found, Plan, find_out
from cifar_sweep.machine.speeds import Split, rough_costs
from cifar_sweep.machine.timing import Timer, Timing, step_seconds
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep


def choose(chosen: Sweep, *, typical: bool = False, **options: Any) -> Plan:
    """The plan for one sweep alone; if not `typical`, as for one that is long enough to be measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHORT_SECONDS", SHORT_SECONDS if typical else 0.0)
        return plan.choose([chosen], **options)


SENTENCE = "timing a training step of each network, once on this machine"
USUAL = Speed(image=0.001, step=0.010)
VALIDATION = 10_000 * 0.35 * (0.001 + 0.010 / 200)
FIXED = {"model": "lenet", "batch_size": 32, "epochs": 4, "train_images": 1000}
RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def epoch(images: int, batch: int) -> float:
    """Seconds at the usual speed."""
    return images * (0.001 + 0.010 / batch) + VALIDATION


TRIAL = 4 * epoch(1000, 32)


def sweep(trials: int = 8, **keys: Any) -> Sweep:
    return parse({"name": "test", "trials": trials, "fixed": FIXED, "space": RATE} | keys, where="test")


def shape(**params: Any) -> Shape:
    return TrialConfig.from_params(FIXED | params, classes=10, precision="fp32", data_seed=0, seed=0).shape


class Machine:
    """One without a GPU, which trains as `speed` says.

    Attributes:
        cores: how many it has.
        free: bytes of memory.
        speed: of a member, by the number of workers and the size of their groups.
        pools: the number of processes each time that some were started.
        is_alone: whether no other program is at work.
        timed: the workers, the threads of each, the network and the group size of each timing.
        devices: of the workers of each timing.
    """

    def __init__(self) -> None:
        self.cores = 4
        self.free: int | None = None
        self.speed: Callable[[int, int], Speed] = lambda workers, size: USUAL
        self.pools: list[int] = []
        self.is_alone = True
        self.timed: list[tuple[int, int, str, int]] = []
        self.devices: list[list[str]] = []

    @contextmanager
    def process_pool(self, size: int) -> Iterator["Machine"]:
        self.pools.append(size)
        yield self

    def together(self, function: Callable[..., Any], *calls: dict[str, Any]) -> list[Any]:
        if function is find_out:
            return [Found("a GPU", "fp32", "it is", self.free)]
        assert function is step_seconds
        workers, call = len(calls), calls[0]
        assert workers <= self.pools[-1]
        assert all(each | {"device": None} == call | {"device": None} for each in calls)
        timing = (workers, call["threads"], call["network"], call["members"])
        if timing not in self.timed:  # at the second of the two batch sizes it is
            self.timed.append(timing)
            self.devices.append([str(each["device"]) for each in calls])
        speed = self.speed(workers, call["members"])
        seconds = call["members"] * (call["batch"] * speed.image + speed.step)
        # Not all alike; the mean counts.
        return [Timing(seconds * 2 * (k + 1) / (workers + 1), self.is_alone) for k in range(workers)]

    def splits(self) -> list[tuple[int, int]]:
        return list(dict.fromkeys((workers, threads) for workers, threads, _, _ in self.timed))

    def networks(self) -> list[str]:
        return list(dict.fromkeys(network for _, _, network, _ in self.timed))

    def sizes(self, *, workers: int) -> list[int]:
        return [size for count, _, _, size in self.timed if count == workers]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made_up = Machine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(timing, "process_pool", made_up.process_pool)
    monkeypatch.setattr(plan, "available_cores", lambda: made_up.cores)
    monkeypatch.setattr(plan, "free_memory", lambda device: made_up.free)
    monkeypatch.setattr(plan, "resolve_precision", lambda device: ("fp32", 1.0))
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path))
    monkeypatch.setenv("CIFAR_SWEEP_KERNELS", "torch")
    only_steps = partial(Costs, start=0, trial=0, report=0)  # times are then those of training and validation alone
    monkeypatch.setattr(speeds, "Costs", only_steps)
    monkeypatch.setattr(speeds, "NetworkCosts", partial(NetworkCosts, checkpoint=0))
    return made_up


@pytest.fixture
def two_gpus(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(processes, "process_pool", lambda size: nullcontext(machine))

    def in_this_process(*_: object) -> Any:
        raise AssertionError("half a gigabyte of the first GPU is gone, and all of it for others where it is exclusive")

    for name in ("get_device_name", "get_device_capability", "mem_get_info", "set_device", "init"):
        monkeypatch.setattr(torch.cuda, name, in_this_process)
    return machine


def by_size(*milliseconds: float) -> Callable[[int, int], Speed]:
    """The time of an image in groups of 1, 2, 4 and so on; as in the last of these in larger ones."""

    def speed(workers: int, size: int) -> Speed:
        return Speed(milliseconds[min(GROUP_SIZES.index(size), len(milliseconds) - 1)] / 1000, 0.0)

    return speed


def timed(*networks: str, splits: tuple[Split, ...] = (Split(1, 1),), precision: str = "fp32") -> dict[Split, Any]:
    return Timer("cpu", precision).measure(networks, splits)


def test_a_plan_knows_what_the_parts_of_the_sweep_cost(machine: Machine) -> None:
    machine.speed = lambda workers, size: Speed(0.001 / workers, 0.010 / size)
    known = choose(sweep(trials=400), workers=2).costs
    assert known is not None
    assert (known.workers, known.fixed, known.train_images) == (2, False, 40_000)
    lenet = known.networks["lenet"]
    assert lenet.image == {size: pytest.approx(0.0005) for size in GROUP_SIZES}
    assert lenet.step == {size: pytest.approx(0.010 / size) for size in GROUP_SIZES}
    assert lenet.sizes == {32: 16}, "the next is faster by less than 4 percent"
    images = choose(sweep(), always=True, workers=2, group=3, train_images=2000).costs
    assert images is not None
    assert (images.fixed, images.train_images, images.networks["lenet"].sizes) == (True, 2000, {32: 3})


def test_a_plan_knows_what_is_done_to_the_images(machine: Machine) -> None:
    choices = {"augmentation": {"choices": ["none", "crop"]}}
    plain, crop = shape(), shape(augmentation="crop")
    planned = choose(sweep(trials=400, space=RATE | choices), workers=2)
    assert planned.costs is not None
    assert planned.costs.changes == {"images: crop": pytest.approx(0.001 + 0.010 / 128)}
    assert [size for _, _, network, size in machine.timed if network == "images: crop"] == [1, 1]
    extra = planned.costs.epoch(crop, 3) - planned.costs.epoch(plain, 3)
    assert extra == pytest.approx(1000 * (0.001 + 0.010 / 128))
    rough = choose(sweep(trials=2, space=RATE | choices), workers=2, typical=True)
    assert rough.costs is not None
    assert rough.costs.changes


def test_the_two_parts_of_a_members_step_are_found(machine: Machine) -> None:
    machine.speed = lambda workers, size: Speed(0.001 / workers, 0.010 / size)
    found = timed("lenet", splits=(Split(2, 3),))[Split(2, 3)]["lenet"]
    assert {size: (speed.image, speed.step) for size, speed in found.items()} == {
        size: pytest.approx((0.0005, 0.010 / size)) for size in found
    }
    assert len(found) > 1
    assert machine.splits() == [(2, 3)]


def test_a_network_is_timed_once(machine: Machine) -> None:
    first = timed("lenet", "cnn3")
    assert machine.networks() == ["cnn3", "lenet"]
    machine.timed.clear()
    assert timed("lenet", "cnn3") == first
    assert (machine.timed, len(machine.pools)) == ([], 1)
    timed("lenet", "cnn1")
    assert machine.networks() == ["cnn1"]


def test_other_splits_and_precisions_are_timed_apart(machine: Machine) -> None:
    for split in (Split(1, 1), Split(1, 2), Split(2, 1)):
        for precision in ("fp32", "bf16"):
            machine.timed.clear()
            first = timed("lenet", splits=(split,), precision=precision)
            assert machine.splits() == [(split.workers, split.threads)]
            machine.timed.clear()
            assert timed("lenet", splits=(split,), precision=precision) == first
            assert machine.timed == []


def test_deeper_vggs_follow_from_vgg11(machine: Machine) -> None:
    found = timed("vgg16", "vgg13")[Split(1, 1)]
    assert machine.networks() == ["vgg11"]
    assert set(found) == {"vgg13", "vgg16"}
    assert found["vgg16"][1].image == pytest.approx(0.001 * 313_457_544 / 153_025_416)
    assert found["vgg13"][1].step == pytest.approx(0.010 * 228_522_888 / 153_025_416)
    machine.timed.clear()
    assert timed("vgg11", "vgg16")[Split(1, 1)]["vgg11"][1].image == pytest.approx(0.001)
    assert machine.timed == []


def test_speeds_are_stored_by_split_network_and_group_size(machine: Machine, tmp_path: Path) -> None:
    machine.speed = by_size(4, 2, 1, 1)
    timed("lenet", "cnn3", splits=(Split(4, 1), Split(2, 2)))
    stored = json.loads((tmp_path / "speeds.json").read_text())
    first, second = stored
    assert "4 x 1 threads" in first
    assert "2 x 2 threads" in second
    for split, sizes in ((first, ["1", "2", "4", "8"]), (second, ["1", "4"])):
        assert {network: list(entry) for network, entry in stored[split].items()} == {"cnn3": sizes, "lenet": sizes}
    assert stored[second]["lenet"]["4"] == pytest.approx([0.001, 0.0], abs=1e-12)


@pytest.mark.parametrize(
    ("milliseconds", "sizes"),
    [
        ([4, 4], [1, 2]),
        ([4, 5], [1, 2]),
        ([4, 3.9, 1], [1, 2]),
        ([4, 3, 2, 1.99, 1], [1, 2, 4, 8]),
        ([32, 16, 8, 4, 2, 1], [1, 2, 4, 8, 16, 32]),
    ],
)
def test_larger_groups_are_tried_until_one_is_no_faster(
    machine: Machine, milliseconds: list[float], sizes: list[int]
) -> None:
    machine.speed = by_size(*milliseconds)
    assert list(timed("lenet")[Split(1, 1)]["lenet"]) == sizes
    assert machine.sizes(workers=1) == sizes


def test_groups_that_are_trained_otherwise_are_tried_though_smaller_ones_gain_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "smallest_representative_group", lambda *_, **__: 8)
    machine.speed = by_size(4, 4, 4, 3, 3)
    assert list(timed("lenet")[Split(1, 1)]["lenet"]) == [1, 2, 4, 8, 16]


def test_under_other_splits_the_best_size_of_the_first_is_timed(machine: Machine) -> None:
    machine.speed = by_size(4, 3, 2, 3)
    splits = (Split(4, 1), Split(2, 2))
    found = timed("lenet", splits=splits)
    assert machine.sizes(workers=4) == list(found[Split(4, 1)]["lenet"]) == [1, 2, 4, 8]
    assert machine.sizes(workers=2) == list(found[Split(2, 2)]["lenet"]) == [1, 4]
    timed("lenet", splits=(*splits, Split(1, 4)))  # the first is known from before
    assert machine.sizes(workers=1) == [1, 4]
    assert machine.pools == [4, 1]


def test_where_groups_gain_nothing_other_splits_train_one_at_a_time(machine: Machine) -> None:
    machine.speed = by_size(2, 3)
    timed("lenet", splits=(Split(4, 1), Split(2, 2)))
    assert machine.sizes(workers=2) == [1]


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
        stored({"lenet": [1, 2]}),
        stored({"lenet": {"1": 1}}),
        stored({"lenet": {"1": [1]}}),
        stored({"lenet": {"1": [1, "x"]}}),
        stored({"lenet": {"one": [1, 2]}}),
        stored({"lenet": {"1": [-1, 0.1]}}),
        stored({"lenet": {"1": [float("nan"), 0.1]}}),
        stored({"lenet": {"1": [0.1, float("inf")]}}),
        stored({"lenet": None}),
    ],
)
def test_a_damaged_file_is_measured_again(machine: Machine, tmp_path: Path, damage: Callable[[str], str]) -> None:
    first = timed("lenet")
    path = tmp_path / "speeds.json"
    path.write_bytes(damage(path.read_text()).encode("latin-1"))
    assert timed("lenet") == first
    assert len(machine.pools) == 2
    assert timed("lenet") == first
    assert len(machine.pools) == 2


def test_of_a_crowd_one_measures_and_the_others_wait_for_what_it_finds(machine: Machine, tmp_path: Path) -> None:
    timed("lenet")
    (tmp_path / "speeds.json").rename(tmp_path / "measured")
    machine.timed.clear()
    with FileLock(tmp_path / "speeds.lock"):  # as one that measures holds it
        waiting = ThreadPoolExecutor().submit(timed, "lenet")
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        (tmp_path / "measured").rename(tmp_path / "speeds.json")
    assert waiting.result()[Split(1, 1)]["lenet"][1].per_image(10) == pytest.approx(0.002)
    assert machine.timed == []


def test_what_was_timed_beside_other_programs_is_not_kept(machine: Machine, tmp_path: Path) -> None:
    timed("lenet")
    machine.is_alone = False
    said: list[str] = []
    for _ in range(2):
        found = Timer("cpu", "fp32").measure(["lenet", "convnet"], [Split(1, 1)], say=said.append)
        assert found[Split(1, 1)]["convnet"][1].per_image(10) == pytest.approx(0.002), "but taken"
    assert said == [SENTENCE, "other programs were at work meanwhile; these times are not kept"] * 2
    stored = json.loads((tmp_path / "speeds.json").read_text())
    assert [list(networks) for networks in stored.values()] == [["lenet"]], "what was known before stays"
    machine.is_alone, _ = True, said.clear()
    for _ in range(2):
        Timer("cpu", "fp32").measure(["lenet", "convnet"], [Split(1, 1)], say=said.append)
    assert said == [SENTENCE]


def test_who_has_no_time_to_wait_for_another_takes_typical_speeds(machine: Machine, tmp_path: Path) -> None:
    with FileLock(tmp_path / "speeds.lock"):
        assert Timer("cpu", "fp32").measure(["lenet"], [Split(1, 1)], seconds=0.2) == {}
    assert machine.timed == []


def test_a_folder_that_cannot_be_written_is_no_error(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path / "file"))
    found = timed("lenet")[Split(1, 1)]
    assert found["lenet"][1].per_image(10) == pytest.approx(0.002)


def test_one_trial_has_the_whole_machine_and_nothing_is_timed(machine: Machine) -> None:
    said: list[str] = []
    found = choose(sweep(trials=1), say=said.append)
    assert (found.split, found.usual, found.seconds, found.gain) == (Split(1, 4), 1, None, None)
    assert (machine.pools, said) == ([], [])
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("threads", "expected"), [(0, 1), (2, 2)])
def test_a_plan_that_is_asked_for_is_not_timed(machine: Machine, threads: int, expected: int) -> None:
    found = choose(sweep(), workers=3, group=5, threads=threads)
    assert found == Plan(Split(3, expected), Groups(5), usual=5)
    assert str(found) == "3 workers x 5 trials"
    assert machine.pools == []


def test_a_group_that_is_asked_for_is_taken_and_its_split_is_chosen(machine: Machine) -> None:
    machine.speed = by_size(1, 2)  # together is slower
    found = choose(sweep(), group=5)
    assert machine.splits() == [(4, 1), (2, 2), (1, 4)]
    assert (found.usual, found.groups) == (5, Groups(5))


def test_only_memory_lowers_a_group_that_is_asked_for(machine: Machine) -> None:
    found = {}
    for members in (0.5, 3.5, 50):
        machine.free = int(2 * members * member_bytes(shape()) / MEMORY_SHARE)
        found[members] = choose(sweep(trials=40), workers=2, group=20).usual
    assert found == {0.5: 1, 3.5: 3, 50: 20}


def test_memory_is_shared_by_the_workers(machine: Machine) -> None:
    machine.free = int(12.5 * member_bytes(shape()) / MEMORY_SHARE)
    assert [choose(sweep(trials=40), workers=workers, group=20).usual for workers in (1, 2, 4)] == [12, 6, 3]


@pytest.mark.parametrize(
    ("milliseconds", "best"),
    [
        ({4: 4, 2: 4, 1: 4}, Split(4, 1)),
        ({4: 9, 2: 4, 1: 3}, Split(2, 2)),
        ({4: 9, 2: 5, 1: 2}, Split(1, 4)),
        ({4: 4.1, 2: 2, 1: 1.03}, Split(4, 1)),
        ({4: 4.3, 2: 2, 1: 1}, Split(2, 2)),
    ],
)
def test_the_split_that_is_expected_to_be_done_first_wins(
    machine: Machine, milliseconds: dict[int, float], best: Split
) -> None:
    """Of those that are about as fast the one with the most workers: their threads wait for others least."""
    machine.speed = lambda workers, size: Speed(milliseconds[workers] / 1000, 0.0)
    found = choose(sweep())
    assert machine.splits() == [(4, 1), (2, 2), (1, 4)]
    assert (found.split, found.usual) == (best, 1)
    seconds = {workers: 8 / workers * 4 * (1000 + 3500) * each / 1000 for workers, each in milliseconds.items()}
    assert found.seconds == pytest.approx(seconds[best.workers])
    assert found.gain == pytest.approx(seconds[1] / seconds[best.workers])


@pytest.mark.slow
def test_a_gain_is_that_of_workers_and_groups_together(machine: Machine) -> None:
    machine.speed = lambda workers, size: Speed(0.001 * workers**0.5 / min(size, 4), 0.0)
    found = choose(sweep(trials=4000))
    assert (found.split, found.usual) == (Split(4, 1), 4)
    assert found.gain == pytest.approx(8, rel=0.02), "its first groups are smaller"
    assert found.seconds == pytest.approx(4000 * 4 * 4500 * 0.001 / 8, rel=0.02)
    assert str(found) == "4 workers x 4 trials, about 8 times one at a time"
    assert [found.groups.size(shape(batch_size=batch)) for batch in (16, 64, 1024)] == [4, 4, 4]


def test_no_worker_waits_for_a_trial_that_there_is_not(machine: Machine) -> None:
    machine.cores = 40
    assert choose(sweep(trials=2)).split == Split(2, 20)
    assert machine.splits() == [(2, 20), (1, 40)]
    machine.timed.clear()
    assert choose(sweep(trials=99)).split == Split(plan.MAX_WORKERS, 2)
    assert machine.splits() == [(16, 2), (8, 5), (4, 10)]  # those of 2 and 1 are known from before


def test_short_sweeps_are_trained_in_smaller_groups_than_would_be_fastest(machine: Machine) -> None:
    machine.speed = by_size(32, 16, 8, 4, 2, 1)
    short, long = choose(sweep(trials=9), workers=4), choose(sweep(trials=9000), workers=4)
    assert short.groups.size(shape()) == long.groups.size(shape()) == long.usual == 32
    assert 1 <= short.usual <= 3, "the nine are for four workers"


def test_strategy_auto_fills_its_groups_where_no_shape_is_searched(machine: Machine) -> None:
    machine.speed = by_size(32, 16, 8, 4, 2, 1)
    learns = {"strategy": "optuna", "sampler": {"name": "tpe", "startup_trials": 1}}
    assert choose(sweep(trials=40, strategy="auto"), workers=2).usual == 32
    assert choose(sweep(trials=40, **learns), workers=2).usual < 32
    shapes = RATE | {"batch_size": {"low": 16, "high": 64, "base2": True}}
    fixed = {name: value for name, value in FIXED.items() if name != "batch_size"}
    assert choose(sweep(trials=40, strategy="auto", space=shapes, fixed=fixed), workers=2).usual < 32


def test_the_last_worker_ends_the_sweep(machine: Machine) -> None:
    machine.speed = lambda workers, size: Speed(0.001, 0.0)
    found = choose(sweep(trials=9), workers=4, group=5, always=True)
    assert found.seconds == pytest.approx(5 * 4 * 4500 * 0.001), "two workers have no group, one has one of four"


def given(*points: dict[str, Any]) -> Sweep:
    labelled = [{"label": str(number), **point} for number, point in enumerate(points)]
    space = {"batch_size": {"low": 16, "high": 1024, "base2": True}}
    fixed = {name: value for name, value in FIXED.items() if name != "batch_size"}
    return sweep(sampler="given", pruner="none", fixed=fixed, space=space, enqueue=labelled)


@pytest.mark.parametrize(("few", "many"), [(16, 1024), (1024, 16)])
def test_the_usual_size_is_that_of_most_trials(machine: Machine, few: int, many: int) -> None:
    machine.speed = lambda workers, size: Speed(0.001 if size == 1 else 0.0012, 0.1 / min(size, 8))
    found = choose(given(*[{"batch_size": few}] * 20, *[{"batch_size": many}] * 30), workers=1)
    sizes = {batch: found.groups.size(shape(batch_size=batch)) for batch in (16, 1024)}
    assert sizes == {16: 8, 1024: 1}
    assert found.usual == sizes[many]


@pytest.mark.parametrize("group", [0, 2])
def test_given_points_are_trained_with_those_alone_that_are_alike(machine: Machine, group: int) -> None:
    machine.speed = by_size(4, 2, 1)
    different = choose(given(*[{"batch_size": 2**power} for power in range(4, 10)]), workers=1, group=group)
    assert different.usual == 1
    pairs = choose(given(*[{"batch_size": 2**power} for power in range(4, 10)] * 2), workers=1, group=group)
    assert pairs.usual == 2


def test_two_gpus_have_a_worker_or_more_each(two_gpus: Machine) -> None:
    two_gpus.cores = 8
    found = choose(sweep(trials=100))
    assert two_gpus.splits() == [(2, 1), (4, 1), (8, 1), (1, 1)]
    assert two_gpus.devices[0] == ["cuda:0", "cuda:1"]
    eight = next(devices for devices in two_gpus.devices if len(devices) == 8)
    assert eight == ["cuda:0", "cuda:1"] * 4
    assert found.split == Split(8, 1, 2)
    assert found.found == Found("a GPU", "fp32", "it is", two_gpus.free)


@pytest.mark.parametrize(
    ("cores", "gigabytes", "workers"), [(8, None, 8), (5, None, 5), (3, 64, 3), (8, 12, 4), (8, 1, 1)]
)
def test_workers_on_gpus_are_bounded_by_cores_and_memory(
    two_gpus: Machine, cores: int, gigabytes: int | None, workers: int
) -> None:
    two_gpus.cores, two_gpus.free = cores, gigabytes and gigabytes << 30
    assert choose(sweep(trials=100)).split == Split(workers, 1, min(workers, 2))


def test_more_gpus_do_not_make_groups_smaller(two_gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus.cores = 16
    two_gpus.speed = lambda workers, size: Speed(0.001 / size, 0.0)
    searched = sweep(trials=1000, strategy="optuna", sampler="tpe")
    sizes = {}
    for count in (1, 8):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        sizes[count] = choose(searched, workers=count, device="cuda").usual
    assert sizes[1] == sizes[8] > 2


def test_cpu_workers_are_bounded_by_memory(machine: Machine) -> None:
    machine.free = 2 * plan.WORKER_BYTES["cpu"] + 1
    assert choose(sweep(trials=100)).split == Split(2, 2)


def test_a_plan_says_what_bounds_it(machine: Machine) -> None:
    machine.speed = by_size(32, 16, 8, 8, 8, 8)
    assert choose(sweep(trials=9000, sampler="random"), workers=4).bound == "the cores"
    few = choose(sweep(trials=8, sampler="random"), workers=4).bound
    assert few == "the search, which has no more trials; groups of 4 would be faster"
    learns = choose(sweep(trials=40, strategy="optuna", sampler={"name": "tpe", "startup_trials": 1}), workers=16).bound
    assert learns
    assert "learns from trials that have ended" in learns
    listed = choose(given(*[{"batch_size": 2**power} for power in range(4, 10)]), workers=1).bound
    assert listed == "the search, which has few points that are alike; groups of 4 would be faster"
    machine.free = int(2.5 * 4 * member_bytes(shape()) / MEMORY_SHARE)
    fits = choose(sweep(trials=9000, sampler="random"), workers=4).bound
    assert fits == "memory, which has room for groups of 2; 4 would be faster"
    assert choose(sweep(trials=9000), workers=4, group=4).bound is None


@pytest.mark.parametrize(
    ("milliseconds", "bound"),
    [
        ((32, 16, 8, 4, 2, 1), "the host, which launches the GPU's work"),
        ((8, 5, 4, 4, 4, 4), "the GPU"),
        ((8,), "the GPU"),
    ],
)
def test_a_plan_says_whether_a_gpu_waits_for_its_host(
    two_gpus: Machine, milliseconds: tuple[float, ...], bound: str
) -> None:
    two_gpus.speed = by_size(*milliseconds)
    assert choose(sweep(trials=9000, sampler="random"), device="cuda:0", workers=1).bound == bound


def test_a_gpu_that_is_named_has_one_worker_or_more(two_gpus: Machine) -> None:
    two_gpus.speed = lambda workers, size: Speed({1: 2, 2: 3, 4: 9}[workers] / 1000, 0.0)
    found = choose(sweep(trials=100), device="cuda:1")
    assert two_gpus.splits() == [(1, 1), (2, 1), (4, 1)]
    assert {device for devices in two_gpus.devices for device in devices} == {"cuda:1"}
    assert found.split == Split(2, 1)
    assert found.gain == pytest.approx(4 / 3)


def test_on_a_gpu_workers_and_group_may_be_asked_for(two_gpus: Machine) -> None:
    assert choose(sweep(), device="cuda", workers=3, group=5) == Plan(Split(3, 1, 2), Groups(5), usual=5)
    assert two_gpus.pools == []


def test_a_device_that_is_not_there_is_refused(machine: Machine) -> None:
    with pytest.raises(DeviceError, match="sees no CUDA device"):
        choose(sweep(), device="cuda")


@pytest.mark.parametrize(
    ("workers", "size", "gain", "shown"),
    [
        (2, 8, 9.04, "2 workers x 8 trials, about 9 times one at a time"),
        (1, 8, 2.46, "1 worker x 8 trials, about 2.5 times one at a time"),
        (2, 1, 1.05, "2 workers x 1 trial, about 1.1 times one at a time"),
        (1, 1, 1.0, "1 worker x 1 trial"),
        (1, 1, None, "1 worker x 1 trial"),
    ],
)
def test_a_plan_in_words(workers: int, size: int, gain: float | None, shown: str) -> None:
    assert str(Plan(Split(workers, 1), Groups(size), size, gain=gain)) == shown


def test_a_short_sweep_is_planned_by_typical_speeds(machine: Machine) -> None:
    short = sweep(trials=8)
    found = choose(short, typical=True)
    assert machine.pools == []
    assert found.split == Split(4, 1)
    assert found.usual == 2, "eight trials are for all four workers"
    assert found.costs is not None
    assert found.costs.rough
    assert found.gain is None
    assert 0 < (found.seconds or 0) < SHORT_SECONDS
    assert choose(short, typical=True, always=True).gain
    assert machine.pools, "`plan` measures all the same"
    known = choose(short, typical=True)
    assert known.gain, "what was measured is better than a guess"


def test_a_long_sweep_and_one_of_an_unknown_network_are_measured(machine: Machine, tmp_path: Path) -> None:
    assert choose(sweep(trials=1000), typical=True).gain
    (tmp_path / "mine.py").write_text("def build(shape):\n    pass\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert choose(sweep(trials=8, fixed=FIXED | {"model": "mine:build"}), typical=True).gain


def rough_seconds(sweep: Sweep) -> float | None:
    found = rough_costs(sweep)
    return found[1] if found else None


def test_rough_times_are_those_of_the_fastest_split_that_was_timed(machine: Machine) -> None:
    chosen = sweep(trials=8)
    typical = rough_seconds(chosen)
    assert typical
    assert machine.pools == []
    machine.speed = lambda workers, size: Speed(0.001 / workers, 0.0)
    timed("lenet", splits=(Split(2, 1), Split(4, 1)))
    assert rough_seconds(chosen) == pytest.approx(8 / 4 * 4 * 4500 * 0.001 / 4)
    assert rough_seconds(sweep(fixed=FIXED | {"model": "cnn3"})) != rough_seconds(chosen)
    assert rough_seconds(sweep(fixed=FIXED | {"model": "mine:build"})) is None


def test_where_measuring_takes_too_long_typical_speeds_are_taken(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(now))
    chosen = sweep(space=RATE | {"model": {"choices": ["lenet", "convnet"]}}, fixed={"epochs": 4})
    rough = choose(chosen, seconds=15.0)
    assert rough.costs is not None
    assert rough.costs.rough
    [first] = machine.networks()
    assert not Timer("cpu", "fp32").missing([first], [Split(4, 1)]), "what was measured is kept"
    timed = choose(chosen)
    assert timed.costs is not None
    assert not timed.costs.rough
