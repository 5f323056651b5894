"""An export is whole, true, loads without us, and trains again to the same numbers."""

import json
import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from hypothesis import example, given, settings
from hypothesis.strategies import characters, text

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import DiskError
from cifar_sweep.exports.exported import read
from cifar_sweep.exports.trained import Provenance, Trained
from cifar_sweep.exports.write import config_toml, write
from cifar_sweep.parameters import Value
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.lanes.compiled import KERNELS, kernels, kernels_name
from cifar_sweep.training.models import build
from tests.bare import BarePython, assert_same, some_pictures

RUN = ("run", "tiny.toml", "--data", "synthetic:500", "--workers", 1, "--threads", 1)
EXPORT = ("export", "tiny")
CPU = torch.device("cpu")
VARIANTS = [
    {},
    {"--set": ["model=cnn3", "batch_norm=true", "dropout=0.3", "normalize=true", "precision=bf16"]},
    {"--set": ["model=convnet", "padding_mode=reflect", "softmax=true", "init=xavier", "hidden_units=80"]},
]


def settings_of(variant: dict[str, list[str]]) -> list[str]:
    return [word for pair in variant.get("--set", []) for word in ("--set", pair)]


@pytest.fixture(
    params=[VARIANTS[0], *(pytest.param(variant, marks=pytest.mark.slow) for variant in VARIANTS[1:])],
    ids=["lenet", "cnn3 normalised", "convnet of report C"],
)
def exported(request: pytest.FixtureRequest, tiny_sweep: Path, cli: Any) -> Path:
    assert cli(*RUN, "--trials", 2, *settings_of(request.param)).exit_code == 0
    finished = cli(*EXPORT)
    assert finished.exit_code == 0, finished.err
    [folder] = Path("exports").iterdir()
    assert str(folder) in finished.out
    return folder


def metrics_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def test_the_folder_is_whole_and_consistent(exported: Path, cli: Any) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "MODEL_CARD.md",
        "config.toml",
        "metrics.json",
        "predict.py",
        "weights.safetensors",
    ]
    metrics = metrics_of(exported)
    [study] = json.loads(cli("status", "--json").out)["studies"]
    assert metrics["validation_accuracy"] == study["best"]["value"]
    assert metrics["params"] == study["best"]["params"]
    assert metrics["data"]["fingerprint"] == study["data_fingerprint"]
    assert 0 <= metrics["test_accuracy"] <= 1
    assert metrics["test_images"] == 100
    assert [point["epoch"] for point in metrics["curve"]] == [1, 2, 3]
    assert metrics["environment"]["threads"] == 1
    assert {"python", "torch", "optuna", "cifar-sweep", "device"} <= metrics["environment"].keys()
    assert "commit" in metrics
    origin = tomllib.loads((exported / "config.toml").read_text())["origin"]
    assert origin["trial"] == study["best"]["number"]


def test_its_script_says_without_us_what_predict_says(exported: Path, cli: Any, bare_python: BarePython) -> None:
    pictures = some_pictures(Path("pictures"))
    said = json.loads(cli("predict", exported, *pictures, "--json").out)["images"]
    elsewhere = Path("elsewhere")
    elsewhere.mkdir()
    finished = bare_python(exported.absolute() / "predict.py", *(path.absolute() for path in pictures), cwd=elsewhere)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert_same(finished.stdout, said, export=str(exported))


def test_training_it_again_gives_the_same_numbers(exported: Path, cli: Any) -> None:
    finished = cli("train", exported)
    assert finished.exit_code == 0, finished.err
    assert "compared with the export's: the same" in finished.out
    again = exported.with_name(exported.name + "-again")
    before, after = metrics_of(exported), metrics_of(again)
    for name in ("test_accuracy", "test_loss", "validation_accuracy", "best_epoch"):
        assert before[name] == after[name]
    losses = [[point["train_loss"] for point in metrics["curve"]] for metrics in (before, after)]
    assert losses[0] == losses[1]
    assert (exported / "weights.safetensors").read_bytes() == (again / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("precision", "trials", "group"), [("fp32", 6, 4), ("bf16", 6, 4), ("fp32", 8, 8), ("bf16", 8, 8)]
)
@pytest.mark.slow
def test_a_trial_of_a_group_trains_again_to_the_same_numbers(
    tiny_sweep: Path, cli: Any, precision: str, trials: int, group: int
) -> None:
    """In float32 a network alone gets other last digits than the same one in a group; large ones have other kernels."""
    pruner = ["--set", "pruner=median", "--set", f"precision={precision}"]
    assert cli(*RUN, *pruner, "--trials", trials, "--group", group, "--epochs", 4).exit_code == 0
    assert cli(*EXPORT, "--out", "first").exit_code == 0
    sizes = tomllib.loads(Path("first/config.toml").read_text())["origin"]["group_sizes"]
    assert len(sizes) == 4
    assert sizes[0] > 1
    finished = cli("train", "first", "--out", "again")
    assert finished.exit_code == 0, finished.err
    assert "compared with the export's: the same" in finished.out
    assert Path("first/weights.safetensors").read_bytes() == Path("again/weights.safetensors").read_bytes()
    again = tomllib.loads(Path("again/config.toml").read_text())["origin"]
    first = tomllib.loads(Path("first/config.toml").read_text())["origin"]
    for name in ("group_sizes", "group_places"):
        assert again[name] == first[name]


@pytest.mark.slow
def test_training_again_by_other_kernels_says_so(tiny_sweep: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels(bf16=False) is None:
        pytest.skip("no C compiler here")
    monkeypatch.setenv(KERNELS, "torch")
    assert cli(*RUN, "--trials", 8, "--group", 8, "--epochs", 1).exit_code == 0
    assert cli(*EXPORT, "--out", "first").exit_code == 0
    assert tomllib.loads(Path("first/config.toml").read_text())["origin"]["versions"]["kernels"] == "torch"
    monkeypatch.delenv(KERNELS)
    finished = cli("train", "first", "--out", "again")
    assert "the last digits may differ; CIFAR_SWEEP_KERNELS=torch trains as then" in " ".join(finished.out.split())
    found = tomllib.loads(Path("again/config.toml").read_text())["origin"]["versions"]["kernels"]
    assert found == kernels_name(torch.device("cpu"))
    assert "may differ" not in cli("train", "again", "--out", "twice").out


@pytest.mark.slow
def test_groups_that_became_larger_and_smaller_are_trained_again(tiny_sweep: Path, cli: Any) -> None:
    """Interrupted trials are taken up in other groups: here alone, then third of four, then first of two."""
    assert cli(*RUN, "--trials", 1).exit_code == 0
    assert cli(*EXPORT, "--out", "first").exit_code == 0
    config = Path("first/config.toml")
    content = tomllib.loads(config.read_text())
    content["origin"] |= {"group_sizes": [1, 4, 2], "group_places": [0, 2, 0]}
    config.write_text(tomli_w.dumps(content))
    finished = cli("train", "first", "--out", "again")
    assert finished.exit_code == 0, finished.err
    origin = tomllib.loads(Path("again/config.toml").read_text())["origin"]
    assert (origin["group_sizes"], origin["group_places"]) == ([1, 4, 2], [0, 2, 0])
    twice = cli("train", "again", "--out", "twice")
    assert "compared with the export's: the same" in twice.out
    assert Path("again/weights.safetensors").read_bytes() == Path("twice/weights.safetensors").read_bytes()


def test_a_trial_by_its_number_and_a_folder_by_name(tiny_sweep: Path, cli: Any) -> None:
    assert cli(*RUN, "--trials", 2).exit_code == 0
    assert cli(*EXPORT, "--trial", 1, "--out", "here").exit_code == 0
    assert metrics_of(Path("here"))["trial"] == 1
    missing = cli(*EXPORT, "--trial", 7)
    assert missing.exit_code == 1
    assert "no complete trial 7; complete are: " in missing.err


def test_weights_that_are_gone_or_damaged(tiny_sweep: Path, cli: Any) -> None:
    assert cli(*RUN, "--trials", 1).exit_code == 0
    [weights] = Path("artifacts").rglob("weights-*")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    damaged = cli(*EXPORT)
    assert damaged.exit_code == 1
    assert "checksum" in damaged.err
    weights.unlink()
    gone = cli(*EXPORT)
    assert gone.exit_code == 1
    assert "there are no weights of trial 0" in gone.err
    assert not Path("exports").exists()


@pytest.mark.slow
def test_other_data_than_the_studys(tiny_sweep: Path, cli: Any) -> None:
    assert cli(*RUN, "--trials", 1).exit_code == 0
    finished = cli("export", "tiny", "--data", "synthetic:600")
    assert finished.exit_code == 1
    assert "synthetic images (500 + 100), not on synthetic images (600 + 120)" in finished.err
    assert cli(*EXPORT, "--out", "here").exit_code == 0
    elsewhere = cli("train", "here", "--data", "synthetic:600")
    assert elsewhere.exit_code == 0
    assert "numbers will differ" in elsewhere.out


def test_a_config_by_hand_is_checked(tiny_sweep: Path, cli: Any) -> None:
    assert cli(*RUN, "--trials", 1).exit_code == 0
    assert cli(*EXPORT, "--out", "here").exit_code == 0
    config = Path("here/config.toml")
    content = tomllib.loads(config.read_text())
    for table, changes, words in (
        ("config", {"epochs": -1}, "epochs = -1"),
        ("config", {"epochs": None}, "epochs is missing"),
        ("config", {"epoch": 3}, "'epoch'"),
        ("config", {"classes": "10"}, "classes = '10' is not accepted"),
        ("origin", {"threads": "one"}, "[origin]: threads: input should be a valid integer"),
        ("origin", {"device": None}, "[origin]: device: field required"),
        ("origin", {"channel_mean": [1.0] * 4}, "[origin]: channel_mean"),
        ("origin", {"group_places": [0, 1, 0]}, "[origin]: group_places"),
        ("origin", {"group_places": [0, 0]}, "[origin]: group_places"),
    ):
        changed = {key: value for key, value in (content[table] | changes).items() if value is not None}
        config.write_text(tomli_w.dumps(content | {table: changed}))
        finished = cli("train", "here", "--data", "synthetic:500")
        assert finished.exit_code == 2
        assert "config.toml" in finished.err
        assert words in finished.err


def untrained(small_data: ImageData, params: dict[str, Value], provenance: Provenance) -> Trained:
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=3, seed=4)
    return Trained(config, build(config.shape, seed=0).state_dict(), provenance)


def provenance(text: str = "a study", **others: Any) -> Provenance:
    """Of no training that ever was. `text` stands wherever a user's words may stand."""
    facts = {
        "study": text, "trial": 3, "label": text, "shortened": text, "best_epoch": 1, "validation_accuracy": 0.1,
        "data_source": text, "device": "cpu", "threads": 2, "commit": "", "versions": {"torch": "0", text: text},
        "params": {"learning_rate": 1.5e-5, text: text},
    }  # fmt: skip
    return Provenance(**facts | others)


def test_config_toml_reads_back(small_data: ImageData, tmp_path: Path) -> None:
    params: dict[str, Value] = {"model": "vgg11", "learning_rate": 1.5e-5, "hidden_units": 8}
    trained = untrained(small_data, params, provenance('a "name" 🐈', group_sizes=(2, 1), group_places=(1, 0)))
    write(tmp_path / "out", [trained], data=small_data, device=CPU)
    [member] = read(tmp_path / "out").members
    assert member.config == trained.config
    assert member.origin.channel_mean == list(small_data.channel_mean)
    assert asdict(member.origin).items() >= asdict(trained.provenance).items()


@pytest.mark.parametrize("count", [1, 2])
@settings(database=None, deadline=None, max_examples=50)
@given(text=text(characters(exclude_categories=()), min_size=1))
@example("\x7f")
@example('"""\n[config]\nepochs = 7 # \\u0041')
@example("\ud83d\udc31 \udcff")
def test_any_words_of_users_are_read_back(
    small_data: ImageData, tmp_path_factory: pytest.TempPathFactory, count: int, text: str
) -> None:
    """In labels, names of studies and classes, and keys. What UTF-8 cannot hold is read back as an escape."""
    trained = untrained(small_data, {"model": "lenet"}, provenance(text))
    images = replace(small_data, name=text, classes=(text, "other"))
    file = tmp_path_factory.mktemp("any") / "config.toml"
    file.write_text(config_toml([trained] * count, data=images, sha256="0"), encoding="utf-8", newline="")
    held = text.encode(errors="backslashreplace").decode()
    members = read(file).members
    assert len(members) == count
    for member in members:
        assert member.config == trained.config
        assert {member.origin.study, member.origin.label, member.origin.data, member.origin.classes[0]} == {held}
        assert member.origin.params[held] == member.origin.versions[held] == held


def test_a_folder_without_its_weights_has_no_config(small_data: ImageData, tmp_path: Path) -> None:
    (tmp_path / "out" / "weights.safetensors").mkdir(parents=True)  # where no file can be put
    with pytest.raises(DiskError):
        write(
            tmp_path / "out", [untrained(small_data, {"model": "lenet"}, provenance("a"))], data=small_data, device=CPU
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights.safetensors"]


def test_a_folder_is_written_whatever_users_named(small_data: ImageData, tmp_path: Path) -> None:
    words = "\x7f \udcff\n|"
    images = replace(small_data, classes=(words, *small_data.classes[1:]))
    write(tmp_path / "out", [untrained(images, {"model": "lenet"}, provenance(words))], data=images, device=CPU)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["label"] == words
    assert read(tmp_path / "out").classifier()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    table = re.search(r"\| validation accuracy.*?\n\n", (tmp_path / "out/MODEL_CARD.md").read_text(), re.DOTALL)
    assert table is not None
    rows = table[0].strip().splitlines()
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3] * 7


def test_an_export_of_former_times_is_read(exports: None, cli: Any) -> None:
    """It had neither script nor ONNX."""
    Path("one/predict.py").unlink()
    finished = cli("predict", "one", "--test", 1)
    assert finished.exit_code == 0, finished.err


def test_a_config_of_version_0_1_is_read() -> None:
    """Of an ensemble; written line by line, without a TOML library."""
    members = read(Path(__file__).parent / "config-0.1.toml").members
    assert [member.config.shape.model for member in members] == ["lenet", "convnet"]
    first, second = (member.origin for member in members)
    assert (first.study, first.trial, first.label, first.best_epoch) == ('a "study"', 0, "", 1)
    assert (second.label, second.shortened, second.validation_accuracy) == ("plain", "3 of 30 epochs", 0.25)
    assert (second.group_sizes, second.group_places, second.commit) == ((2,), (1,), "")
    assert second.params == {"learning_rate": 1e-05, "batch_norm": True}
    assert second.versions == {"torch": "2", "my_module:build": "3"}
