"""`run --from` and `run --extend`, from the command to what status and report say."""

import json
from pathlib import Path
from typing import Any

import pytest

DATA = ("--data", "synthetic:500")


@pytest.mark.slow
def test_a_study_begins_with_another_one_and_is_extended_later(tiny_sweep: Path, cli: Any) -> None:
    def run(*options: object) -> Any:
        ended = cli("run", tiny_sweep, *DATA, *options)
        assert ended.exit_code == 0, ended.err
        return ended

    run("--trials", 2, "--storage", "sqlite:///old.db")
    new = ("--study", "new")
    assert (
        "study 'tiny': 2 of 2 finished trials are known from the start"
        in run(*new, "--trials", 1, "--from", "sqlite:///old.db::tiny").out
    )
    [glance] = json.loads(cli("status", "--json").out)["studies"]
    assert glance["trials"]["complete"] == 1
    assert glance["earlier"]["trials"] == 2
    assert "1/1 (2 known from tiny)" in cli("status").out
    exported = cli("export", "new", "--trial", 0)
    assert exported.exit_code == 1, "its weights are in its own study"

    refused = cli("run", tiny_sweep, *DATA, *new, "--trials", 3, "--epochs", 4)
    assert "go on with these from now on with --extend" in refused.err
    said = run(*new, "--trials", 3, "--epochs", 4, "--extend").out
    assert "study 'new' is extended: epochs: 3, now 4. 1 trial stays as before" in said
    assert "[3/3]" in said
    report = cli("report", "new", "--format", "md", "--no-images", "--out", "-").out
    assert "It began with 2 trials of tiny, not counted here." in report
    assert "the study was extended: epochs: 3, now 4" in report


def test_what_is_not_there_is_refused_before_a_study_is_made(tiny_sweep: Path, cli: Any) -> None:
    for source, words in (
        ("sqlite:///none.db::old", "there is no study database here yet"),
        ("sqlite:///none.db::", "there is no study database here yet"),
        ("postgresql://me:secret@host/db::old", "a password on the command line is seen"),
    ):
        refused = cli("submit", tiny_sweep, *DATA, "--from", source)
        assert refused.exit_code != 0
        assert words in refused.err
        assert "secret" not in refused.err
    assert cli("submit", tiny_sweep, *DATA, "--extend").exit_code == 1
    assert "holds no study yet" in cli("status").out
    assert cli("submit", tiny_sweep, *DATA).exit_code == 0
    assert "it has no finished trial" in cli("submit", tiny_sweep, *DATA, "--study", "b", "--from", "tiny").err
    assert "there is no study 'old'" in cli("submit", tiny_sweep, *DATA, "--study", "b", "--from", "old").err
