"""From Python: the same sweeps, studies and exports as on the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import cifar_sweep
from cifar_sweep.api import Study, load_study, load_sweep, run_sweep
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.figures.by_name import FIGURES

TINY: dict[str, Any] = {
    "name": "tiny",
    "trials": 3,
    "pruner": "none",
    "fixed": {"model": "lenet", "precision": "fp32", "batch_size": 32, "epochs": 2},
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
}


@pytest.fixture
def study() -> Study:
    return run_sweep(TINY, data="synthetic:500", workers=1, group=1, threads=1, progress=False)


def test_a_sweep_from_the_first_line_to_the_best_network(study: Study, small_data: Any, tmp_path: Path) -> None:
    assert repr(study) == "Study('tiny', 3 complete)"
    trials = study.trials()
    assert list(trials.index) == [0, 1, 2]
    assert set(trials["state"]) == {"complete"}
    assert trials["learning_rate"].between(1e-4, 1e-2).all()
    best = study.best()
    assert best.validation_accuracy == trials["value"].max()
    assert best.params == {"learning_rate": trials.loc[best.number, "learning_rate"]}
    assert best.config.shape.model == "lenet"
    curves = study.curves()
    assert curves.index.names == ["trial", "epoch"]
    assert len(curves) == 6
    assert curves.loc[best.number]["validation_accuracy"].max() == best.validation_accuracy

    metrics = best.export(tmp_path / "best")
    images = small_data.test_images.permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        right = best.network()(images).argmax(dim=1) == small_data.test_labels
    assert float(right.double().mean()) == pytest.approx(metrics["test_accuracy"])
    assert json.loads((tmp_path / "best" / "metrics.json").read_text()) == metrics

    again = load_study()
    assert again.name == "tiny"
    pd.testing.assert_frame_equal(again.trials(), trials)
    more = run_sweep(load_sweep(TINY, settings={"trials": 4}), data="synthetic:500", workers=1, group=1, progress=False)
    assert len(more.trials()) == 4


@pytest.mark.slow
def test_figures(study: Study) -> None:
    drawn = {name: study.figure(name) for name in FIGURES}
    assert all(figure.layout.to_plotly_json() for figure in drawn.values())
    assert all(drawn[name].data for name in FIGURES if name not in ("pruned_when", "importance", "correlation"))


def test_what_is_not_there(study: Study) -> None:
    with pytest.raises(UsageError, match="figure 'curves': did you mean learning_curves"):
        study.figure("curves")
    with pytest.raises(StudyError, match="has no complete trial 9; complete are: "):
        study.trial(9)
    with pytest.raises(StudyError, match="there is no study 'other'"):
        load_study("other")
    with pytest.raises(UsageError, match=r"load_sweep: \[fixed\]: there is no parameter 'modle'"):
        load_sweep({"name": "x", "fixed": {"modle": "lenet"}})
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cifar_sweep.nothing  # noqa: B018


def test_a_study_without_a_trial() -> None:
    study = run_sweep(TINY, data="synthetic:500", workers=1, group=1, max_hours=0, progress=False)
    assert study.trials().empty
    assert study.curves().empty
    with pytest.raises(StudyError, match="has no finished trial"):
        study.best()
    with pytest.raises(StudyError, match="has no trial with a finished epoch"):
        study.figure("learning_curves")


@pytest.mark.slow
def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """Several workers are started by a script that runs a sweep at its top level."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('begin')\n"
        "from cifar_sweep import run_sweep\n"
        f"study = run_sweep({TINY!r}, data='synthetic:500', workers=2, group=1, threads=1)\n"
        "print(len(study.trials()), 'trials')\n"
    )
    finished = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("begin") == 1
    assert finished.stdout.endswith("3 trials\n")


def test_everything_public_is_there() -> None:
    assert all(hasattr(cifar_sweep, name) for name in cifar_sweep.__all__)
    assert set(cifar_sweep.__all__) <= set(dir(cifar_sweep))
