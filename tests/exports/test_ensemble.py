"""Ensembles are the mean of their members, chosen by validation, and exports like any other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_sweep.exports import exported
from cifar_sweep.exports.classifier import accuracy, predict
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.images.data import ImageData
from tests.bare import BarePython, assert_same, some_pictures

CPU = torch.device("cpu")


def metrics_of(folder: str) -> dict[str, Any]:
    return dict(json.loads(Path(folder, "metrics.json").read_text()))


def test_it_is_the_mean_of_its_members(study: str, small_data: ImageData, cli: Any) -> None:
    finished = cli("ensemble", study, "--top", 3, "--out", "all")
    assert finished.exit_code == 0, finished.err
    for number in range(3):
        assert cli("export", study, "--trial", number, "--out", f"one-{number}").exit_code == 0
    images = (small_data.test_images.permute(0, 3, 1, 2) / 255).float()
    with torch.no_grad():
        alone = torch.stack([exported.read(Path(f"one-{number}")).classifier()(images) for number in range(3)])
        together = exported.read(Path("all")).classifier()(images)
    assert torch.allclose(together, alone.mean(dim=0), atol=1e-6)
    assert not torch.allclose(together, alone[0], atol=1e-3)
    metrics = metrics_of("all")
    assert metrics["test_accuracy"] == pytest.approx(accuracy(together, small_data.test_labels))
    tests = {member["trial"]: member["test_accuracy"] for member in metrics["members"]}
    assert tests == {number: metrics_of(f"one-{number}")["test_accuracy"] for number in range(3)}


def test_the_best_by_validation_are_taken_and_the_named_ones_on_request(study: str, cli: Any) -> None:
    [summary] = json.loads(cli("status", "--json").out)["studies"]
    assert cli("ensemble", "--top", 2, "--out", "two").exit_code == 0
    members = metrics_of("two")["members"]
    assert members[0]["trial"] == summary["best"]["number"]
    assert members[0]["validation_accuracy"] == pytest.approx(summary["best"]["value"])
    assert members[0]["validation_accuracy"] >= members[1]["validation_accuracy"]
    assert cli("ensemble", study, "--trials", "2,0", "--out", "named").exit_code == 0
    assert [member["trial"] for member in metrics_of("named")["members"]] == [2, 0]


def test_exports_make_the_same_ensemble_as_their_trials(study: str, mixed_folder: Path, cli: Any) -> None:
    assert cli("ensemble", study, "--trials", "0,1", "--out", "from-study").exit_code == 0
    first, second = mixed_folder / "one-0", mixed_folder / "one-1"
    finished = cli("ensemble", first, second, "--out", "from-exports")
    assert finished.exit_code == 0, finished.err
    assert Path("from-study/weights.safetensors").read_bytes() == Path("from-exports/weights.safetensors").read_bytes()
    assert metrics_of("from-study")["test_accuracy"] == metrics_of("from-exports")["test_accuracy"]
    # An ensemble is an export, too, and may be a part of one.
    assert cli("ensemble", "from-study", second, "--out", "nested").exit_code == 0
    assert [member["trial"] for member in metrics_of("nested")["members"]] == [0, 1, 1]


@pytest.mark.slow
def test_other_seeds_give_other_networks_that_train_again_alike(study: str, cli: Any) -> None:
    finished = cli("ensemble", study, "--trials", "0", "--seeds", 2, "--out", "seeds")
    assert finished.exit_code == 0, finished.err
    read = exported.read(Path("seeds"))
    assert len({member.config.knobs.seed for member in read.members}) == 2
    assert len({member.config.shape.data_seed for member in read.members}) == 2
    first, second = read.weights()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert list(Path("seeds").glob(".training*")) == []
    again = cli("train", "seeds", "--out", "again", "--data", "synthetic:500")
    assert again.exit_code == 0, again.err
    assert "compared with the export's: the same" in again.out
    assert Path("seeds/weights.safetensors").read_bytes() == Path("again/weights.safetensors").read_bytes()


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_stopped(study: str, cli: Any, monkeypatch: Any) -> None:
    from cifar_sweep.training.train import EpochInterruptedError, Run

    epoch = Run.epoch

    def stopped_in_the_second(self: Run, stop: Any) -> Any:
        if self.epochs_done == 1:
            raise EpochInterruptedError
        return epoch(self, stop)

    monkeypatch.setattr(Run, "epoch", stopped_in_the_second)
    assert "stopped" in cli("ensemble", study, "--trials", "0", "--seeds", 2, "--out", "seeds").out
    assert len(list(Path("seeds").glob(".training*"))) == 1
    monkeypatch.setattr(Run, "epoch", epoch)
    finished = cli("ensemble", study, "--trials", "0", "--seeds", 2, "--out", "seeds")
    assert finished.exit_code == 0, finished.err
    assert finished.out.count("going on after epoch 1") == 1
    assert cli("ensemble", study, "--trials", "0", "--seeds", 2, "--out", "unbroken").exit_code == 0
    assert Path("seeds/weights.safetensors").read_bytes() == Path("unbroken/weights.safetensors").read_bytes()


@pytest.mark.slow
def test_the_cards_lines_use_it_without_us(
    study: str, small_data: ImageData, cli: Any, bare_python: BarePython
) -> None:
    assert cli("ensemble", study, "--top", 3, "--out", "all").exit_code == 0
    torch.save({"images": small_data.test_images, "labels": small_data.test_labels}, "test.pt")
    [code] = re.findall(r"```python\n(.*?)```", Path("all/MODEL_CARD.md").read_text(), re.DOTALL)
    mine = "images = torch.load('../test.pt')['images'].permute(0, 3, 1, 2) / 255"
    code = code.replace("images = torch.rand(8, 3, 32, 32)", mine)
    assert mine in code
    check = """
labels = torch.load('../test.pt')['labels']
print((probabilities.argmax(dim=1) == labels).float().mean().item())
"""
    result = bare_python("-c", code + check, cwd=Path("all"))
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(metrics_of("all")["test_accuracy"], abs=1e-6)


@pytest.mark.slow
def test_its_script_says_without_us_what_predict_says(study: str, cli: Any, bare_python: BarePython) -> None:
    """Of networks of which some normalise, and one has the softmax inside."""
    assert cli("ensemble", study, "--top", 3, "--out", "all").exit_code == 0
    pictures = some_pictures(Path("pictures"))
    said = json.loads(cli("predict", "all", *pictures, "--json").out)["images"]
    finished = bare_python("all/predict.py", *pictures, cwd=Path())
    assert (finished.returncode, finished.stderr) == (0, "")
    assert_same(finished.stdout, said, export="all")


def test_what_makes_no_ensemble(study: str, mixed_folder: Path, cli: Any) -> None:
    one = str(mixed_folder / "one-0")
    for arguments, exit_code, words in (
        (("mixed", "--top", 1), 2, "an ensemble of 1"),
        (("mixed", "--top", 4), 1, "has 3 complete trials, fewer than the 4"),
        (("mixed", "--trials", "1,x"), 2, "different trial numbers with commas"),
        (("mixed", "--trials", "1,7"), 1, "no complete trial 7"),
        (("mixed", "--trials", "1,1"), 2, "different trial numbers"),
        ((one, one, "--top", 2), 2, "accepted with a study"),
        (("mixed", "other"), 2, "one study, or folders that hold a config.toml"),
        (("nowhere",), 1, "there is no study 'nowhere'"),
        (("mixed", "--data", "synthetic:600"), 1, "not on synthetic images (600 + 120)"),
    ):
        finished = cli("ensemble", *arguments)
        assert finished.exit_code == exit_code
        assert words in finished.err
        assert not Path("exports").exists()


@pytest.mark.slow
def test_members_of_different_data_are_refused(study: str, mixed_folder: Path, cli: Any) -> None:
    other = ("run", "mixed.toml", "--only", "plain", "--data", "synthetic:600", "--study", "other")
    assert cli(*other, "--workers", 1, "--threads", 1).exit_code == 0
    assert cli("export", "other", "--out", "two").exit_code == 0
    finished = cli("ensemble", mixed_folder / "one-0", "two")
    assert finished.exit_code == 2
    assert "two: trained on synthetic images (600 + 120)" in finished.err


def test_damaged_weights_are_found(study: str, cli: Any) -> None:
    assert cli("ensemble", study, "--top", 2, "--out", "two").exit_code == 0
    weights = Path("two/weights.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    damaged = cli("evaluate", "two")
    assert damaged.exit_code == 1
    assert "checksum" in damaged.err
    weights.unlink()
    missing = cli("evaluate", "two")
    assert missing.exit_code == 1
    assert "the weights cannot be read" in missing.err


def test_predictions_do_not_depend_on_the_batch(study: str, small_data: ImageData, cli: Any) -> None:
    assert cli("ensemble", study, "--top", 2, "--out", "two").exit_code == 0
    classifier = exported.read(Path("two")).classifier()
    batches = Batches(small_data, device=CPU)
    whole = predict(classifier, batches.test(100), device=CPU)
    parts = predict(classifier, batches.test(7), device=CPU)
    assert torch.allclose(whole.mean, parts.mean, atol=1e-6)
    assert torch.equal(whole.labels, small_data.test_labels)
