"""An export whose settings were changed is another run, and says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import UsageError
from cifar_sweep.work import retrain


@pytest.mark.parametrize("settings", [{"filters": "8,8"}, {"kernel_size": "3,3"}, {"conv_layers": 2}])
def test_lists_are_of_as_many_layers_as_there_are(settings: dict[str, Any]) -> None:
    params = {"model": "cnn", "filters": "4,4,4"}
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0)
    with pytest.raises(UsageError, match=r"^--set: .* lists are to be of one length"):
        retrain.changed(config, settings)
    assert retrain.changed(config, {"epochs": 7}).shape.epochs == 7


@pytest.mark.slow
def test_trained_again_with_other_settings(tiny_sweep: Path, cli: Any) -> None:
    assert cli("run", "./tiny.toml", "--data", "synthetic:500", "--trials", 1, "--epochs", 1).exit_code == 0
    assert cli("export", "tiny", "--out", "best").exit_code == 0
    shutil.copytree("best", "longer")
    config = Path("longer/config.toml")
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes().replace(b"\nepochs = 1\n", b"\r\nepochs = 2\r\n"))
    for source, changed in (("best", False), ("longer", True)):
        trained = cli("train", source, "--out", f"{source}-again")
        assert trained.exit_code == 0, trained.err
        assert ("it is another run than the export's" in trained.out) == changed
        assert ("another run than that trial's" in Path(f"{source}-again/MODEL_CARD.md").read_text()) == changed
        assert json.loads(Path(f"{source}-again/metrics.json").read_text())["changed"] == changed
    settings = cli("train", "best", "--set", "epochs=2", "--set", "train_images=300", "--out", "more")
    assert settings.exit_code == 0, settings.err
    assert "it is another run than the export's" in settings.out
    assert len(json.loads(Path("more/metrics.json").read_text())["curve"]) == 2
    for wrong, words in (
        ("filters=3", "it does nothing for lenet"),
        ("epochs=0", "a whole number from 1"),
        ("lr=1", "did you mean learning_rate"),
    ):
        refused = cli("train", "best", "--set", wrong)
        assert refused.exit_code == 2
        assert words in refused.err
    again = cli("train", "longer-again", "--out", "third")
    assert again.exit_code == 0, again.err
    assert "another run than that trial's" in Path("third/MODEL_CARD.md").read_text()
