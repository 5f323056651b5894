"""Every command that reads a study reads one that plain Optuna has written to."""

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from cifar_sweep.dashboard.server import application
from cifar_sweep.study.storage import open_storage
from tests.study.plain_studies import opened_by_optuna

ODD: dict[str, Any] = {
    "config": {"model": 7}, "environment": "mine", "curve": [1, {"epoch": "x"}], "weights": {"name": None},
    "until": "soon", "seconds": None, "x": [None], "owner": [], "deaths": "many", "checkpoints": {"a": 1}, "given": 5,
    "label": "a|b <i>\n\x1b[1m",
}  # fmt: skip
PARAMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"learning_rate": 50.0}, {"learning_rate": FloatDistribution(0, 100)}),
    ({"width": None, "a|b": True}, {name: CategoricalDistribution([None, True]) for name in ("width", "a|b")}),
]


def get(app: Any, path: str) -> tuple[str, bytes]:
    said: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "HTTP_HOST": "localhost", "QUERY_STRING": ""}
    environ |= {"wsgi.errors": None, "wsgi.url_scheme": "http", "SERVER_NAME": "localhost", "SERVER_PORT": "80"}
    content = b"".join(app(environ, lambda status, *_: said.append(status)))
    return said[-1], content


def test_commands_on_a_study_with_foreign_trials(tiny_sweep: Path, cli: Any, tmp_path: Path) -> None:
    asked = ("./tiny.toml", "--data", "synthetic:500", "--epochs", 1, "--trials")
    run = ("run", *asked)
    assert cli("submit", *asked, 2).exit_code == 0
    with opened_by_optuna(f"sqlite:///{tmp_path}/studies.db", "tiny") as other:
        for state in TrialState:
            for params, kinds in PARAMS:
                value = 0.99 if state is TrialState.COMPLETE else None
                reports = {0: math.nan, 3: math.inf, 7: 0.5}
                facts: dict[str, Any] = {"user_attrs": ODD, "intermediate_values": reports, "value": value}
                other.add_trial(create_trial(state=state, params=params, distributions=kinds, **facts))
        other.enqueue_trial({"learning_rate": 2e-3}, user_attrs={"label": "mine"})
        other.enqueue_trial({"learning_rate": "fast"}, user_attrs=ODD)

    def check(ours: int) -> None:
        [study] = json.loads(cli("status", "--json").out)["studies"]
        counts = study["trials"]
        assert counts["complete"] + counts["pruned"] == ours
        assert counts["outside"] == 8
        assert study["best"] is None if ours == 0 else study["best"]["value"] < 0.99
        assert f"{ours}/{study['budget']}" in cli("status").out
        for form in ("html", "md", "csv"):
            told = cli("report", "--format", form, "--out", f"r.{form}")
            assert told.exit_code == 0, told.err
        assert Path("r.csv").read_text().count(",outside,") == 8
        for command in (("plot",), ("export", "--out", f"best-{ours}"), ("compare",)) if ours else ():
            told = cli(*command)
            assert told.exit_code == 0, told.err
        with closing(open_storage(f"sqlite:///{tmp_path}/studies.db")) as storage:
            app = application(storage)
            for path in ("/api/studies", "/api/studies/1", "/csv/1"):
                status, content = get(app, path)
                assert status.startswith("200"), content[:500]

    check(0)
    finished = cli(*run, 2)
    assert finished.exit_code == 0, finished.err
    check(2)
    finished = cli(*run, 5)
    assert finished.exit_code == 0, finished.err
    assert "5 of 5 trials finished: 5 complete, 0 pruned" in finished.out
    check(5)
    with closing(open_storage(f"sqlite:///{tmp_path}/studies.db")) as storage:
        trials = storage.load("tiny").get_trials(deepcopy=False)
        mine = next(trial for trial in trials if trial.user_attrs.get("label") == "mine")
        assert (mine.state, mine.params["learning_rate"]) == (TrialState.COMPLETE, 2e-3)
        assert any("fast" in str(trial.user_attrs.get("reason")) for trial in trials)


@pytest.mark.parametrize(
    "key", ["versions", "commit", "test_accuracy", "hopes", "costs", "priority", "state", "reason"]
)
def test_commands_on_a_study_with_odd_attributes(key: str, tiny_sweep: Path, cli: Any, tmp_path: Path) -> None:
    assert cli("submit", "./tiny.toml", "--data", "synthetic:500").exit_code == 0
    with opened_by_optuna(f"sqlite:///{tmp_path}/studies.db", "tiny") as other:
        for value in (None, 5, "odd", ["a|b"], {"x": {}}):
            other.set_user_attr(key, value)
            for command in ("status", "status --json", "report --format md --no-images --out -"):
                told = cli(*command.split())
                assert told.exit_code == 0, told.err
            with closing(open_storage(f"sqlite:///{tmp_path}/studies.db")) as storage:
                status, content = get(application(storage), "/api/studies")
                assert status.startswith("200"), content[:500]
