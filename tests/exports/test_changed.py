"""An export whose settings were changed is another run, and says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


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
    again = cli("train", "longer-again", "--out", "third")
    assert again.exit_code == 0, again.err
    assert "another run than that trial's" in Path("third/MODEL_CARD.md").read_text()
