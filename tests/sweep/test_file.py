"""Sweep files: what is accepted, and that every refusal is one sentence with the place and what would be accepted."""

import re
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import PARAMETERS, applies
from cifar_sweep.sweep import strategy
from cifar_sweep.sweep import sweep as sweepfile
from cifar_sweep.sweep.file import find, from_mapping, load, names
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Choices, Range, Sweep, contains

LEARNING_RATE = "[space]\nlearning_rate = { low = 1e-4, high = 0.1, log = true }\n"
BATCHES = "[space]\nbatch_size = { low = 16, high = 64, base2 = true }\n"
# Words of pydantic and of Python that mean nothing to the author of a sweep file.
JARGON = re.compile(
    r"pydantic|https?:|Error|Input should|instance of|dictionary|function-|a valid|Range|Choices|Settings|Point|"
    r"\bTrue\b|\bFalse\b|\bNone\b|datetime|\[type="
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lr.toml"


def written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def refusal(file: Path, text: str, **options: Any) -> str:
    with pytest.raises(UsageError) as refused:
        load(written(file, text), **options)
    return str(refused.value).replace(str(file), "lr.toml")


def assert_one_sentence(message: str) -> None:
    assert message.endswith(".")
    assert "\n" not in message
    assert ". " not in message
    assert not JARGON.search(message), message


TOP_LEVEL = (
    "accepted: description, trials, seed, keep_weights, keep_megabytes, confirm, strategy, sampler, pruner, stop, "
    "fixed, space, enqueue, ensemble, preview, metric"
)

REFUSED = {
    "not TOML": ("trials = = 3", "lr.toml: not valid TOML: Invalid value (at line 1, column 10)"),
    "a key twice": ("trials = 3\ntrials = 4", "lr.toml: not valid TOML: Cannot overwrite a value"),
    "unknown key, near": ("trails = 3", f"there is no key 'trails'; did you mean trials? {TOP_LEVEL}."),
    "unknown key, far": ("zzz = 3", f"lr.toml: there is no key 'zzz'; {TOP_LEVEL}."),
    "unknown table": ("[spaces]\na = 1", "there is no key 'spaces'; did you mean space? accepted"),
    "trials as text": ('trials = "ten"', "lr.toml: trials = 'ten' is not accepted; it takes a whole number."),
    "no trials": ("trials = 0", "lr.toml: trials = 0 is not accepted; it takes a whole number of at least 1."),
    "half a trial": ("trials = 1.5", "trials = 1.5 is not accepted; it takes a whole number."),
    "trials as truth": ("trials = true", "trials = true is not accepted; it takes a whole number."),
    "negative seed": ("seed = -1", "seed = -1 is not accepted; it takes a whole number of at least 0."),
    "no weights": ("keep_weights = 0", "keep_weights = 0 is not accepted; it takes a whole number of at least 1."),
    "description": ("description = 3", "description = 3 is not accepted; it takes a text in quotes."),
    "empty name": ('name = ""', "name = '' is not accepted; it takes a text that is not empty."),
    "pruner, string": (
        'pruner = "medain"',
        "there is no pruner 'medain'; did you mean median? known: asha, auto, hyperband,",
    ),
    "pruner, table": (
        'pruner = { name = "medain" }',
        "there is no pruner 'medain'; did you mean median? known: asha, auto",
    ),
    "pruner, number": ("pruner = 3", "pruner = 3 is not accepted; it takes the name of a pruner or a table with it."),
    "pruner, list": ('pruner = ["median"]', "it takes the name of a pruner or a table with it."),
    "pruner, key": (
        'pruner = { name = "median", warmup = 3 }',
        "lr.toml: [pruner]: there is no key 'warmup'; did you mean warmup_steps? accepted: name, startup_trials,",
    ),
    "pruner, idle key": (
        'pruner = { name = "asha", warmup_steps = 3 }',
        "lr.toml: pruner: warmup_steps does nothing for 'asha'; it takes min_steps, reduction_factor.",
    ),
    "sampler, idle key": (
        'sampler = { name = "random", startup_trials = 3 }',
        "lr.toml: sampler: startup_trials does nothing for 'random'; it takes no other key.",
    ),
    "pruner, below": (
        'pruner = { name = "median", warmup_steps = -3 }',
        "lr.toml: [pruner]: warmup_steps = -3 is not accepted; it takes a whole number of at least 0.",
    ),
    "pruner, type": (
        'pruner = { warmup_steps = "x" }',
        "[pruner]: warmup_steps = 'x' is not accepted; it takes a whole",
    ),
    "percentile": ("pruner = { percentile = 0 }", "percentile = 0 is not accepted; it takes a number above 0."),
    "percentile 2": (
        "pruner = { percentile = 101 }",
        "percentile = 101 is not accepted; it takes a number of at most 100",
    ),
    "percentile 3": ('pruner = { percentile = "x" }', "percentile = 'x' is not accepted; it takes a number."),
    "reduction": (
        "pruner = { reduction_factor = 1 }",
        "reduction_factor = 1 is not accepted; it takes a whole number of",
    ),
    "sampler, string": (
        'sampler = "tpee"',
        "there is no sampler 'tpee'; did you mean tpe? known: auto, given, grid, qmc, random, tpe.",
    ),
    "sampler, table": (
        'sampler = { name = "cma" }',
        "lr.toml: there is no sampler 'cma'; known: auto, given, grid, qmc, random, tpe.",
    ),
    "sampler, key": ("sampler = { startup = 3 }", "[sampler]: there is no key 'startup'; did you mean startup_trials?"),
    "fixed, name": (
        "[fixed]\nlearning_rat = 0.1",
        "[fixed]: there is no parameter 'learning_rat'; did you mean learning_r",
    ),
    "fixed, range": (
        "[fixed]\ndropout = 1.0",
        "lr.toml: [fixed]: dropout = 1.0 is not accepted; it takes a number from 0 to",
    ),
    "fixed, list": (
        '[fixed]\nmodel = ["lenet"]',
        "lr.toml: [fixed]: model = ['lenet'] is not accepted; it takes a number,",
    ),
    "fixed, table": (
        "[fixed]\ngamma = { low = 1 }",
        "lr.toml: [fixed]: gamma is not accepted; it takes a number, a text,",
    ),
    "fixed, date": (
        "[fixed]\nmodel = 2020-01-01",
        "[fixed]: model = 2020-01-01 is not accepted; it takes a number, a te",
    ),
    "fixed, infinite": (
        "[fixed]\nbatch_size = inf",
        "[fixed]: batch_size = inf is not accepted; it takes a whole number",
    ),
    "fixed, no table": ("fixed = 3", "lr.toml: fixed = 3 is not accepted; it takes a table."),
    "space, name": (
        "[space]\nmomentun = { low = 0, high = 0.9 }",
        "[space]: there is no parameter 'momentun'; did you mean mom",
    ),
    "space, number": (
        "[space]\nlearning_rate = 0.1",
        "[space]: learning_rate = 0.1 is not accepted; it takes a table with low and high, or with choices; a single "
        "value belongs in [fixed].",
    ),
    "space, list": ('[space]\nmodel = ["lenet"]', "it takes a table with low and high, or with choices"),
    "space, no table": ("space = 3", "lr.toml: space = 3 is not accepted; it takes a table."),
    "space, empty": (
        "[space]\ngamma = {}",
        "lr.toml: [space.gamma]: low is missing; accepted: low and high, or choices.",
    ),
    "space, no high": (
        "[space]\ngamma = { low = 0.1 }",
        "[space.gamma]: high is missing; accepted: low and high, or ch",
    ),
    "space, key": (
        "[space]\ngamma = { low = 0.1, high = 1, lg = true }",
        "[space.gamma]: there is no key 'lg'; did you mean log? accepted: low, high, log, step, base2, choices.",
    ),
    "space, low misspelt": (
        "[space]\ngamma = { lo = 0.1, high = 1 }",
        "there is no key 'lo'; did you mean low? accepted: low",
    ),
    "space, choices misspelt": (
        '[space]\nmodel = { choics = ["lenet"] }',
        "there is no key 'choics'; did you mean choices?",
    ),
    "space, low as text": (
        '[space]\ngamma = { low = "a", high = 1 }',
        "[space.gamma]: low = 'a' is not accepted; it takes a",
    ),
    "space, low above": (
        "[space]\nlearning_rate = { low = 1, high = 0.1 }",
        "lr.toml: [space]: learning_rate: low = 1 is above high = 0.1; low must not be above high.",
    ),
    "space, log of 0": (
        "[space]\nweight_decay = { low = 0, high = 0.1, log = true }",
        "[space]: weight_decay: low = 0 has no logarithm; a log or base2 range starts above 0.",
    ),
    "space, log as text": (
        '[space]\ngamma = { low = 0.1, high = 1, log = "yes" }',
        "log = 'yes' is not accepted; it takes true or",
    ),
    "space, base2": (
        "[space]\nbatch_size = { low = 16, high = 100, base2 = true }",
        "[space]: batch_size: low = 16 and high = 100 are not both powers of two; a base2 range starts and ends at",
    ),
    "space, base2 and infinity": (
        "[space]\nbatch_size = { low = 16, high = inf, base2 = true }",
        "[space.batch_size]: high = inf is not accepted; it takes a number.",
    ),
    "space, base2 of a fraction": ("[space]\ngamma = { low = 0.5, high = 1, base2 = true }", "not both powers of two"),
    "space, base2 of a decimal": (
        "[space]\ngamma = { low = 1, high = 1, base2 = true }",
        "gamma is no whole number, so base2",
    ),
    "space, step of a decimal": (
        "[space]\nlearning_rate = { low = 1, high = 2, step = 1 }",
        "accepted: choices = [1.0, 2.0].",
    ),
    "space, step and log": (
        "[space]\nbatch_size = { low = 16, high = 64, step = 16, log = true }",
        "[space]: batch_size: log, base2 and step exclude each other; a range takes one of them or none.",
    ),
    "space, log and base2": (
        "[space]\nbatch_size = { low = 16, high = 64, base2 = true, log = true }",
        "exclude each other",
    ),
    "space, step 0": (
        "[space]\nbatch_size = { low = 16, high = 64, step = 0 }",
        "step = 0 is not accepted; it takes a whole",
    ),
    "space, step past the end": (
        "[space]\nbatch_size = { low = 16, high = 64, step = 5 }",
        "[space]: batch_size: steps of 5 from 16 do not end at high = 64 but at 61.",
    ),
    "space, fraction": (
        "[space]\nbatch_size = { low = 1.5, high = 20 }",
        "[space]: batch_size = 1.5 is not accepted; it takes a",
    ),
    "space, open end": (
        "[space]\ndropout = { low = 0, high = 1 }",
        "[space]: dropout = 1 is not accepted; it takes a number from",
    ),
    "space, range of names": (
        "[space]\nmodel = { low = 1, high = 2 }",
        "[space]: model = 1 is not accepted; it takes one of lenet",
    ),
    "choices, none": (
        "[space]\nmodel = { choices = [] }",
        "[space.model]: choices = [] is not accepted; it takes at least one",
    ),
    "choices, no list": (
        '[space]\nmodel = { choices = "lenet" }',
        "[space.model]: choices = 'lenet' is not accepted; it takes a l",
    ),
    "choices, nested": (
        '[space]\nmodel = { choices = [["lenet"]] }',
        "a value of choices = ['lenet'] is not accepted; it takes",
    ),
    "choices, unknown": (
        '[space]\nmodel = { choices = ["lenett"] }',
        "[space]: model = 'lenett' is not accepted; it takes one",
    ),
    "choices, twice": (
        "[space]\nbatch_size = { choices = [16, 32, 16] }",
        "choices has 16 twice; each value stands there once.",
    ),
    "choices and low": (
        "[space]\nbatch_size = { choices = [16], low = 3 }",
        "there is no key 'low'; accepted: choices.",
    ),
    "fixed and space": (
        "[fixed]\nlearning_rate = 0.1\n" + LEARNING_RATE,
        "lr.toml: learning_rate stands in [fixed] and in [space]; it belongs in one of them.",
    ),
    "unused, fixed": (
        '[fixed]\nmodel = "cnn1"\nhidden_units = 10',
        "lr.toml: [fixed]: hidden_units does nothing for cnn1; accepted: activation, alpha, amsgrad, asgd_decay,",
    ),
    "unused, space": (
        '[space]\nmodel = { choices = ["cnn1", "lenet"] }\npadding_mode = { choices = ["zeros", "reflect"] }',
        "lr.toml: [space]: padding_mode does nothing for cnn1, lenet; accepted: activation,",
    ),
    "momentum of adam": (
        "[space]\nmomentum = { low = 0, high = 0.9 }",
        "[space]: momentum does nothing for optimizer = 'adam'; it belongs to 'sgd', 'nesterov', 'rmsprop'.",
    ),
    "momentum of adam, fixed": (
        '[fixed]\noptimizer = "adam"\nmomentum = 0.5',
        "[fixed]: momentum does nothing for optimizer = 'adam'; it",
    ),
    "point, name": (
        LEARNING_RATE + "[[enqueue]]\nlerning_rate = 0.1",
        "[[enqueue]] 1: there is no parameter 'lerning_rate'; did",
    ),
    "point, value": (
        LEARNING_RATE + '[[enqueue]]\nlearning_rate = "x"',
        "[[enqueue]] 1: learning_rate = 'x' is not accepted; it",
    ),
    "point, outside": (
        LEARNING_RATE + "[[enqueue]]\nlearning_rate = 0.01\n[[enqueue]]\nlearning_rate = 0.5",
        "lr.toml: [[enqueue]] 2: learning_rate = 0.5 is outside of its [space]: 0.0001 to 0.1.",
    ),
    "point, between powers": (
        BATCHES + "[[enqueue]]\nbatch_size = 48",
        "outside of its [space]: 16 to 64, powers of two.",
    ),
    "point, between steps": (
        "[space]\nbatch_size = { low = 16, high = 64, step = 16 }\n[[enqueue]]\nbatch_size = 40",
        "batch_size = 40 is outside of its [space]: 16 to 64, in steps of 16.",
    ),
    "point, no choice": (
        '[space]\nmodel = { choices = ["lenet", "cnn3"] }\n[[enqueue]]\nmodel = "cnn1"',
        "model = 'cnn1' is outside of its [space]: one of lenet, cnn3.",
    ),
    "point, not searched": (
        LEARNING_RATE + "[[enqueue]]\nbatch_size = 16",
        "lr.toml: [[enqueue]] 1: batch_size is not in [space]; known: learning_rate.",
    ),
    "point, against fixed": (
        "[fixed]\nbatch_size = 64\n" + LEARNING_RATE + "[[enqueue]]\nbatch_size = 16\nlearning_rate = 0.01",
        "[[enqueue]] 1: batch_size = 16 contradicts [fixed], where it is 64.",
    ),
    "point, label": (
        LEARNING_RATE + "[[enqueue]]\nlearning_rate = 0.01\n[[enqueue]]\nlabel = 3",
        "lr.toml: [[enqueue]] 2: label = 3 is not accepted; it takes a text in quotes.",
    ),
    "points as a table": (
        "[enqueue]\ngamma = 1",
        "enqueue is not accepted; it takes a list of points, each begun by [[enqueue]].",
    ),
    "points as numbers": ("enqueue = [3]", "lr.toml: a value of enqueue = 3 is not accepted; it takes a table."),
    "preview, name": (
        "[preview]\nepoch = 3",
        "lr.toml: [preview]: there is no parameter 'epoch'; did you mean epochs?",
    ),
    "preview, range": (
        "[preview]\nepochs = 0",
        "lr.toml: [preview]: epochs = 0 is not accepted; it takes a whole number from 1",
    ),
    "preview, trials": (
        "[preview]\ntrials = 0",
        "lr.toml: [preview]: trials = 0 is not accepted; it takes a whole number of at",
    ),
    "preview, no table": ("preview = 3", "lr.toml: preview = 3 is not accepted; it takes a table."),
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=list(REFUSED))
def test_a_bad_sweep_file_is_refused_in_one_sentence(file: Path, text: str, expected: str) -> None:
    message = refusal(file, text)
    assert expected in message
    assert message.startswith("lr.toml: ")
    assert_one_sentence(message)


def test_a_pruner_by_resources_is_refused_while_epochs_are_searched(file: Path) -> None:
    sweep = load(written(file, 'pruner = "asha"\n[space]\nepochs = { low = 5, high = 50 }'))
    with pytest.raises(UsageError, match="unfair to long schedules") as refused:
        strategy.build_pruner(sweep)
    assert "accepted there: median, percentile, none." in str(refused.value)
    assert_one_sentence(str(refused.value))


@pytest.mark.parametrize(
    ("content", "expected"), [(b"\xff\xfd", "it is not text in UTF-8."), (None, "No such file or directory.")]
)
def test_a_file_that_cannot_be_read_is_refused(file: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=r"the (sweep )?file cannot be read") as refused:
        load(file)
    assert str(refused.value).endswith(expected)
    assert_one_sentence(str(refused.value))


def test_a_folder_is_no_sweep_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: Is a directory\."):
        load(tmp_path)


def test_defaults(file: Path) -> None:
    sweep = load(written(file, ""))
    assert (sweep.name, sweep.trials, sweep.seed, sweep.keep_weights) == ("lr", 50, 0, 5)
    assert (sweep.sampler.name, sweep.pruner.name) == ("tpe", "median")
    assert (sweep.fixed, sweep.space, sweep.enqueue) == ({}, {}, [])


@pytest.mark.parametrize(("stem", "name"), [("gro\u0308ße", "größe"), ("sw\udcffeep", "sw\ufffdeep")])
def test_a_file_of_any_name_is_read(file: Path, stem: str, name: str) -> None:
    file.write_text("trials = 1")
    assert load(file.rename(file.with_stem(stem))).name == name


def test_a_sweep_may_name_itself(file: Path) -> None:
    assert load(written(file, 'name = "other"')).name == "other"


@pytest.mark.parametrize("text", ['pruner = "percentile"', '[pruner]\nname = "percentile"'])
def test_a_pruner_is_a_name_or_a_table(file: Path, text: str) -> None:
    assert load(written(file, text)).pruner == sweepfile.PrunerSettings(name="percentile")


def test_momentum_may_be_searched_where_one_optimizer_has_it(file: Path) -> None:
    text = '[space]\nmomentum = { low = 0, high = 0.9 }\noptimizer = { choices = ["adam", "sgd"] }'
    assert set(load(written(file, text)).space) == {"momentum", "optimizer"}


def test_no_momentum_may_be_fixed_for_adam(file: Path) -> None:
    assert load(written(file, "[fixed]\nmomentum = 0")).fixed == {"momentum": 0}


def test_a_parameter_of_one_of_several_models_may_be_searched(file: Path) -> None:
    text = '[space]\nmodel = { choices = ["cnn1", "lenet"] }\nhidden_units = { low = 10, high = 100, log = true }'
    assert load(written(file, text)).space["hidden_units"] == Range(low=10, high=100, log=True)


def test_a_sweep_survives_plain_data(file: Path) -> None:
    sweep = load(written(file, LEARNING_RATE + 'model = { choices = ["lenet"] }\n[[enqueue]]\nlearning_rate = 0.01\n'))
    assert parse(sweep.model_dump(mode="json"), where="study") == sweep


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Range(low=1e-5, high=0.1, log=True), [1e-5, 0.003, 0.1], [0.9e-5, 0.11, "x"]),
        (Range(low=16, high=64, base2=True), [16, 32, 64, 32.0], [8, 48, 128]),
        (Range(low=10, high=30, step=10), [10, 20, 30], [15, 0, 40]),
        (Choices(choices=["lenet", "cnn3"]), ["lenet"], ["cnn1", 3]),
    ],
)
def test_what_a_domain_contains(domain: Range | Choices, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in [*inside, *outside] if contains(domain, value)] == inside


# Changes, as --set gives them


def changed(file: Path, changes: dict[str, Any], text: str = LEARNING_RATE) -> Sweep:
    return load(written(file, text), changes=changes)


POINTS = (
    LEARNING_RATE
    + "batch_size = { low = 16, high = 64, base2 = true }\n"
    + "".join(f"[[enqueue]]\nlearning_rate = {rate}\nbatch_size = {batch}\n" for rate, batch in [(0.1, 16), (0.01, 32)])
)


def test_a_change_fixes_a_parameter_of_the_space(file: Path) -> None:
    sweep = changed(file, {"learning_rate": 0.02})
    assert (sweep.fixed, sweep.space) == ({"learning_rate": 0.02}, {})


def test_a_change_fixes_a_parameter_that_was_free_or_fixed(file: Path) -> None:
    sweep = changed(file, {"epochs": 3, "gamma": 0.5}, "[fixed]\nepochs = 30\n" + LEARNING_RATE)
    assert sweep.fixed == {"epochs": 3, "gamma": 0.5}
    assert list(sweep.space) == ["learning_rate"]


def test_points_that_contradict_a_change_are_dropped_and_others_kept(file: Path) -> None:
    sweep = changed(file, {"batch_size": 32}, POINTS)
    assert [point.params() for point in sweep.enqueue] == [{"learning_rate": 0.01, "batch_size": 32}]
    assert len(changed(file, {}, POINTS).enqueue) == 2


def test_a_change_sets_a_key(file: Path) -> None:
    sweep = changed(file, {"trials": 7, "seed": 3, "keep_weights": 1, "sampler": "random"})
    assert (sweep.trials, sweep.seed, sweep.keep_weights, sweep.sampler.name) == (7, 3, 1, "random")


def test_a_change_replaces_the_pruner_or_one_of_its_keys(file: Path) -> None:
    text = 'pruner = { name = "percentile", percentile = 30 }\n' + LEARNING_RATE
    assert changed(file, {"pruner": "none"}, text).pruner == sweepfile.PrunerSettings(name="none")
    settings = changed(file, {"pruner.warmup_steps": 4}, text).pruner
    assert (settings.name, settings.percentile, settings.warmup_steps) == ("percentile", 30, 4)


def test_a_pruner_and_one_of_its_keys_may_be_changed_together(file: Path) -> None:
    settings = changed(file, {"pruner": "asha", "pruner.min_steps": 2}).pruner
    assert (settings.name, settings.min_steps) == ("asha", 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trails": 3}, "--set: there is no key 'trails'; did you mean trials? known: "),
        ({"lerning_rate": 3}, "did you mean learning_rate?"),
        ({"description": "x"}, "there is no key 'description'"),
        ({"space.learning_rate": 1}, "there is no key 'space.learning_rate'; did you mean learning_rate?"),
        ({"pruner.": 1}, "there is no key 'pruner.'; did you mean pruner?"),
        ({"pruner.warmup": 3}, "--set: [pruner]: there is no key 'warmup'; did you mean warmup_steps?"),
        ({"pruner.warmup_steps": "x"}, "--set: [pruner]: warmup_steps = 'x' is not accepted; it takes a whole number."),
        ({"pruner": 3, "pruner.warmup_steps": 3}, "--set: pruner = 3 is not accepted; it takes the name of a pruner"),
        ({"pruner": "medain"}, "--set: there is no pruner 'medain'; did you mean median?"),
        ({"trials": 0}, "--set: trials = 0 is not accepted; it takes a whole number of at least 1."),
        ({"learning_rate": "x"}, "--set: learning_rate = 'x' is not accepted; it takes a number from 1e-12 to 1000."),
        ({"epochs": [1]}, "--set: epochs = [1] is not accepted; it takes a whole number from 1 to 100000."),
        ({"momentum": 0.5}, "momentum does nothing for optimizer = 'adam'"),
    ],
)
def test_a_bad_change_is_refused_in_one_sentence(file: Path, changes: dict[str, Any], expected: str) -> None:
    message = refusal(file, LEARNING_RATE, changes=changes)
    assert expected in message
    assert message.startswith("--set: ")
    assert_one_sentence(message)


def test_a_preview_fixes_its_parameters_and_its_number_of_trials(file: Path) -> None:
    text = "trials = 40\n[fixed]\nepochs = 30\n" + LEARNING_RATE + "[preview]\ntrials = 3\nepochs = 1\ntrain_images = 9"
    assert load(written(file, text)).fixed == {"epochs": 30}
    sweep = load(file, preview=True)
    assert (sweep.trials, sweep.fixed) == (3, {"epochs": 1, "train_images": 9})
    assert list(sweep.space) == ["learning_rate"]


TO_TRY_FIRST = "".join(f"[[enqueue]]\nlearning_rate = {rate}\n" for rate in (1e-3, 2e-3, 3e-3))


@pytest.mark.parametrize(("trials", "left"), [(1, 0), (4, 2), (5, 2), (10, 3)])
def test_points_to_try_first_take_half_of_a_preview_at_most(file: Path, trials: int, left: int) -> None:
    written(file, LEARNING_RATE + TO_TRY_FIRST + f"[preview]\ntrials = {trials}\n")
    assert len(load(file, preview=True).enqueue) == left
    assert len(load(file).enqueue) == 3


@pytest.mark.parametrize(
    "text",
    ["[space]\nvalidation_images = { low = 10, high = 20 }", LEARNING_RATE + "[[enqueue]]\nvalidation_images = 9"],
)
def test_trials_of_one_sweep_have_the_same_validation_images(file: Path, text: str) -> None:
    message = refusal(file, text)
    assert message.startswith("lr.toml: validation_images")
    assert "[fixed] and [preview]" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[space]\nimage_size = { choices = [32, 64] }", "image_size is to be the same for all trials"),
        (LEARNING_RATE + "[[enqueue]]\nimage_size = 64", "image_size is to be the same for all trials"),
        (
            LEARNING_RATE + "[fixed]\nimage_size = 7",
            "image_size = 7 is not accepted; it takes a whole number from 8 to 512",
        ),
        (
            LEARNING_RATE + "[fixed]\nimage_size = 28\nmodel = 'vgg13'",
            "vgg13 halves images five times; accepted: image_",
        ),
    ],
)
def test_the_size_of_images_is_fixed_and_fits_the_network(file: Path, text: str, words: str) -> None:
    assert words in refusal(file, text)


def test_a_change_wins_over_the_preview(file: Path) -> None:
    text = "[preview]\ntrials = 3\nepochs = 1\n"
    sweep = load(written(file, text), preview=True, changes={"trials": 5, "epochs": 2})
    assert (sweep.trials, sweep.fixed["epochs"]) == (5, 2)


def test_a_preview_of_what_does_nothing_is_refused(file: Path) -> None:
    message = refusal(file, "[preview]\nmomentum = 0.3", preview=True)
    assert message.startswith("lr.toml: [preview]")
    assert "momentum does nothing for optimizer = 'adam'" in message
    assert_one_sentence(message)


# What a sweep is


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"sampler": "random"}, {"pruner": "none"}, {"gamma": 0.5}, {"learning_rate": 0.01}]
)
def test_the_identity_changes_with_what_decides_the_numbers(file: Path, change: dict[str, Any]) -> None:
    assert changed(file, change).identity() != changed(file, {}).identity()


@pytest.mark.parametrize("change", [{"trials": 7}, {"keep_weights": 1}])
def test_the_identity_does_not_change_with_the_rest(file: Path, change: dict[str, Any]) -> None:
    assert changed(file, change).identity() == changed(file, {}).identity()
    assert changed(file, change) != changed(file, {})


# Names


def test_an_unknown_sweep_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean lr_batch") as refused:
        find("lr_bach")
    assert str(refused.value).startswith("sweep 'lr_bach' is unknown; ")
    assert_one_sentence(str(refused.value))


@pytest.mark.parametrize("name", ["none.toml", "folder/none"])
def test_a_missing_path_is_refused_with_the_known_sweeps(name: str) -> None:
    with pytest.raises(UsageError, match="there is no such sweep file") as refused:
        find(name)
    assert "lr_batch" in str(refused.value)
    assert_one_sentence(str(refused.value))


def test_a_path_is_found_as_it_is(file: Path) -> None:
    assert find(str(written(file, ""))) == file


def test_a_sweep_of_this_folder_wins_over_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find("lr_batch")
    own = Path("sweeps")
    own.mkdir()
    for name in ("lr_batch", "mine"):
        (own / f"{name}.toml").write_text("trials = 3")
    assert find("lr_batch") == own / "lr_batch.toml" != shipped
    assert load(find("lr_batch")).trials == 3
    assert names()["mine"] == own / "mine.toml"


# The shipped sweep

REPORTED = {
    (1e-3, 16), (1e-4, 16), (1e-3, 64), (5e-4, 128), (5e-4, 32), (5e-4, 64), (5e-4, 256), (1.5e-3, 256), (5e-3, 16),
    (1e-2, 16), (0.1, 16), (5e-5, 16), (1e-5, 16),
}  # fmt: skip


def test_lr_batch_searches_the_space_of_the_issue() -> None:
    assert load(find("lr_batch")).space == {
        "learning_rate": Range(low=1e-5, high=0.1, log=True),
        "batch_size": Range(low=16, high=256, base2=True),
    }


def test_lr_batch_tries_every_point_of_the_reports_first() -> None:
    points = load(find("lr_batch")).enqueue
    assert len(points) == 13
    assert {tuple(point.params().values()) for point in points} == REPORTED
    assert all(point.label for point in points)


# The space of the reports, parameter by parameter.
RANGES = {
    "learning_rate": Range(low=1e-5, high=0.1, log=True),
    "batch_size": Range(low=16, high=256, base2=True),
    "epochs": Range(low=3, high=300, log=True),
    "optimizer": Choices(choices=["sgd", "adam", "rmsprop"]),
    "momentum": Range(low=0.0, high=0.9),
    "weight_decay": Range(low=0.0, high=1e-5),
    "dropout": Range(low=0.0, high=0.5),
    "batch_norm": Choices(choices=[False, True]),
    "activation": Choices(choices=["relu", "leaky_relu", "sigmoid", "tanh"]),
    "gamma": Range(low=0.1, high=1.0),
    "normalize": Choices(choices=[False, True]),
    "init": Choices(choices=["default", "xavier"]),
    "softmax": Choices(choices=[False, True]),
    "padding_mode": Choices(choices=["zeros", "reflect"]),
}


@pytest.mark.parametrize(
    ("name", "searched"),
    [
        ("lr_batch", {"learning_rate", "batch_size"}),
        ("schedule", {"epochs", "step_size", "gamma", "learning_rate"}),
        ("regularization", {"dropout", "batch_norm", "activation", "weight_decay"}),
        ("optimizer", {"optimizer", "learning_rate", "momentum"}),
        ("vgg_depth", {"model", "hidden_units", "batch_norm", "activation", "dropout", "optimizer", "learning_rate",
                       "momentum"}),
        ("full", {*RANGES, "model", "hidden_units"}),
    ],
)  # fmt: skip
def test_the_shipped_sweeps_search_the_reports_ranges(name: str, searched: set[str]) -> None:
    sweep = load(find(name))
    assert set(sweep.space) == searched
    for parameter, domain in sweep.space.items():
        if parameter in RANGES:
            assert domain == RANGES[parameter], parameter
    assert sweep.enqueue
    assert all(point.label for point in sweep.enqueue)
    # A hand point is a whole one: nothing that would matter in it is left to the sampler.
    for point in sweep.enqueue:
        values = sweep.fixed | point.params()
        assert {parameter for parameter in sweep.space if applies(parameter, values)} <= set(point.params())


@pytest.mark.parametrize("name", sorted(names()))
@pytest.mark.parametrize("preview", [False, True])
def test_every_shipped_sweep_loads_says_what_it_is_for_and_has_a_pruner(name: str, preview: bool) -> None:
    sweep = load(find(name), preview=preview)
    assert sweep.description
    assert sweep.size >= 4
    assert sweep.space.keys() | sweep.fixed.keys() <= PARAMETERS.keys()
    strategy.build_pruner(sweep)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("auto", "auto", "auto")),
        ({"pruner": "none"}, ("optuna", "tpe", "none")),
        ({"sampler": "random"}, ("optuna", "random", "median")),
        ({"strategy": "optuna"}, ("optuna", "tpe", "median")),
        ({"pruner.startup_trials": 3}, ("optuna", "tpe", "median")),
        ({"strategy": "auto"}, ("auto", "auto", "auto")),
    ],
)
def test_who_names_a_sampler_or_a_pruner_means_strategy_optuna(settings: Any, expected: tuple[str, str, str]) -> None:
    sweep = load(find("lr_batch"), changes=settings)
    assert (sweep.strategy, sweep.sampler.name, sweep.pruner.name) == expected
    assert sweep.pruner.startup_trials == settings.get("pruner.startup_trials", 5)


def test_strategy_auto_takes_the_place_of_a_sampler_and_a_pruner() -> None:
    raw = {"name": "s", "sampler": "random", "pruner": "none"}
    changed = from_mapping(raw, where="test", changes={"strategy": "auto"})
    assert (changed.strategy, changed.sampler.name, changed.pruner.name) == ("auto", "auto", "auto")
