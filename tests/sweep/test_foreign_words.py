"""Sweep files as editors leave them, and the words of other programs."""

from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.errors import UsageError
from cifar_sweep.forecast.pruning import never_prunes
from cifar_sweep.sweep.file import find, load
from cifar_sweep.sweep.parsing import parse

TEXT = """
pruner = "none"
[fixed]
model = "cnn3"
[space]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
"""


def refused(content: bytes | str, name: str = "s.toml") -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as error:
        load(find(f"./{name}"))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf" + TEXT.encode(), TEXT.replace("\n", "\r\n").encode()], ids=["bom", "crlf"]
)
def test_as_windows_saves_it(content: bytes) -> None:
    Path("s.toml").write_bytes(content)
    assert load(Path("s.toml")).fixed == {"model": "cnn3"}


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (TEXT.encode("utf-16"), "s.toml", "text in UTF-16 or UTF-32, or no text; save it as text in UTF-8"),
        (TEXT.encode("utf-16-be"), "s.toml", "text in UTF-16 or UTF-32, or no text; save it as text in UTF-8"),
        (TEXT.encode("utf-32"), "s.toml", "text in UTF-16 or UTF-32, or no text; save it as text in UTF-8"),
        (TEXT.replace("größe", "").encode() + b"\xff", "s.toml", "not text in UTF-8"),
        (TEXT.replace('"none"', "“none”"), "s.toml", "line 2 has a curly quote (“); accepted: straight ones"),
        (TEXT.replace('"none"', "\u2018none\u2019"), "s.toml", "line 2 has a curly quote (\u2018)"),
        ("method: bayes\nmetric: {name: val_acc}\n", "s.yaml", "it looks like YAML; a sweep is a TOML file"),
        ("# a sweep\n---\nmethod: bayes\n", "s.toml", "it looks like YAML"),
    ],
)
def test_what_is_no_toml(content: bytes | str, name: str, words: str) -> None:
    assert words in refused(content, name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('method = "bayes"', "there is no key 'method'; here it is sampler"),
        ('method = "grid"', "there is no key 'method'; here it is sampler"),
        ("[space]\nlearning_rate = { max = 1e-3 }", "here it is high"),
        ('sampler = "bayes"', "did you mean tpe?"),
        ("[metric]\nname = 'a'", "here it is one word, 'accuracy', 'loss', 'f1' or 'top5'"),
        ("[parameters]\nlr = 1", "here it is [space]"),
        ("n_trials = 5", "here it is trials"),
        ("early_terminate = 'hyperband'", "here it is pruner"),
        ("[space]\nlearning_rate = { min = 1e-5, max = 1e-3 }", "here it is low"),
        ("[space]\nbatch_size = { values = [16, 32] }", "here it is choices"),
        ("[space]\ndropout = { value = 0.2 }", "here it is a line in [fixed]"),
        (
            "[space]\ndropout = { distribution = 'uniform', low = 0.0, high = 0.5 }",
            "log = true, base2 = true or neither",
        ),
        ("[space]\nlr = { low = 1e-5, high = 1e-3 }", "there is no parameter 'lr'; did you mean learning_rate?"),
        ("[space]\nlearning_rat = { low = 1e-5, high = 1e-3 }", "did you mean learning_rate? known: "),
        (
            "[space]\ndropout = { low = 0.0, high = 0.5, step = 0.1 }",
            "accepted: choices = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5].",
        ),
        (
            "[space]\ndropout = { low = 0.0, high = 0.5, step = 1 }",
            "step is for whole numbers; accepted: choices = [0.0].",
        ),
        ("[space]\nmomentum = { low = 0.1, high = 0.9, step = 0.4 }", "accepted: choices = [0.1, 0.5, 0.9]."),
        ("[space]\ndropout = { low = 0.0, high = 0.5, step = 1e-9 }", "accepted: low, high, log, or choices."),
        ('[space]\nweight_decay = { choices = ["none", 1e-4] }', "; 0 is none."),
        ("[space]\nlearning_rate = { low = 0, high = 0.1, log = true }", "a log or base2 range starts above 0"),
    ],
)
def test_the_word_that_is_meant(line: str, words: str) -> None:
    assert words in refused(line)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (
            {"pruner": {"name": "median", "warmup_steps": 10}},
            "it would look first after warmup_steps = 10, and trials end after 2",
        ),
        ({"pruner": {"name": "median", "startup_trials": 4}}, "it waits for 4 complete trials, and there are 4"),
        ({"pruner": {"name": "asha", "min_steps": 5}}, "min_steps = 5"),
        ({"pruner": {"name": "hyperband", "min_steps": 5}}, "min_steps = 5"),
        ({"pruner": {"name": "percentile", "startup_trials": 2, "warmup_steps": 1}}, "warmup_steps = 1"),
        ({"pruner": {"name": "median", "startup_trials": 2}}, ""),
        ({"pruner": "median", "fixed": {"epochs": 1}}, "trials end after 1 epoch, before any could be compared; give"),
        ({"pruner": "hyperband", "fixed": {"epochs": 1}}, "trials end after 1 epoch, before any could be compared"),
        ({"pruner": "asha"}, ""),
        ({"pruner": "none"}, ""),
    ],
)
def test_a_pruner_that_can_never_prune(tables: dict[str, Any], words: str) -> None:
    sweep = parse({"name": "s", "trials": 4, "fixed": {"epochs": 2}} | tables, where="test")
    said = never_prunes(sweep)
    assert words in said
    assert bool(said) == bool(words)
