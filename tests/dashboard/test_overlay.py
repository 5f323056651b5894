"""What is laid over the database is right for the moment, is in no database, and hides nothing of others' studies."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from bottle import HTTPError  # type: ignore[import-untyped]
from optuna.exceptions import StorageInternalError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects  # type: ignore[import-untyped]
from optuna_dashboard._note import get_note_from_system_attrs, save_note_with_version  # type: ignore[import-untyped]
from optuna_dashboard.artifact._backend import list_trial_artifacts  # type: ignore[import-untyped]
from sqlalchemy.engine import make_url

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.dashboard import view
from cifar_sweep.dashboard.notes import OWN_NOTE
from cifar_sweep.dashboard.overlay import Overlay
from cifar_sweep.database.outage import explain
from cifar_sweep.study.claim import Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.record import RESERVED
from cifar_sweep.study.storage import FINISHED, Storage, open_existing
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse

DATA = {"name": "synthetic images (500 + 100)", "fingerprint": "abc", "classes": 10}
SPACE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}, "batch_size": {"low": 16, "high": 64, "base2": True}}
SWEEP = {
    "name": "s", "description": "a *plan*", "trials": 20, "pruner": "median", "fixed": {"epochs": 3, "model": "cnn3"},
    "space": SPACE, "keep_weights": 1, "enqueue": [{"label": "B-009 | x", "learning_rate": 1e-3, "batch_size": 16}],
}  # fmt: skip


@pytest.fixture
def study(storage: Storage, name: str, tmp_path: Path) -> SweepStudy:
    """Nothing is trained yet; one point waits."""
    return open_or_resume(storage, name, parse(SWEEP, where="test"), data=DATA, artifacts=str(tmp_path / "artifacts"))


@pytest.fixture
def overlay(storage: Storage) -> Overlay:
    return Overlay(storage, writable=False)


def point(epoch: int, accuracy: float) -> dict[str, Any]:
    losses = {"train_loss": 1.5, "validation_loss": 1.25, "learning_rate": 1e-3, "group_size": 1, "group_place": 0}
    return {"epoch": epoch, "train_accuracy": 0.5, "validation_accuracy": accuracy, "seconds": 2.0, **losses}


def kept(study: SweepStudy, number: int, what: str, content: bytes) -> dict[str, Any]:
    """A file in the study's folder, as the database remembers it."""
    stored = open_artifacts(study.artifacts).put(f"{study.name}/trial-{number}/{what}.safetensors", content)
    return {"name": stored.name, "sha256": stored.sha256, "size": stored.size}


def begin(study: SweepStudy, *accuracies: float, checkpoints: tuple[bytes, ...] = ()) -> Any:
    """A claimed trial with these epochs reported."""
    [claim] = study.claim(Worker(Owner.current(), "cpu (a model)", 2, "fp32"))
    saved = [
        {"epoch": epoch, **kept(study, claim.number, f"checkpoint-{epoch}", content)}
        for epoch, content in enumerate(checkpoints, start=1)
    ]
    study.report(claim, [point(epoch, value) for epoch, value in enumerate(accuracies, start=1)], saved)
    return claim


def complete(study: SweepStudy, *accuracies: float, weights: bytes = b"weights") -> int:
    claim = begin(study, *accuracies)
    files = kept(study, claim.number, "weights", weights)
    study.complete(claim, max(accuracies), best_epoch=1, seconds=6.0, weights=files)
    return claim.number


def key_of(study: SweepStudy) -> int:
    return study.storage.optuna.get_study_id_from_name(study.name)


def trial_key(study: SweepStudy, number: int) -> int:
    return study.storage.optuna.get_trial_id_from_study_id_trial_number(key_of(study), number)


def note_on(overlay: Overlay, study: SweepStudy, number: int | None = None) -> str:
    """The note as optuna-dashboard reads it."""
    attributes = overlay.get_study_system_attrs(key_of(study))
    key = None if number is None else trial_key(study, number)
    return str(get_note_from_system_attrs(attributes, key)["body"])


def shown_trial(overlay: Overlay, study: SweepStudy, number: int) -> FrozenTrial:
    return overlay.get_all_trials(key_of(study), deepcopy=False)[number]


def files_of(overlay: Overlay, study: SweepStudy, number: int) -> list[dict[str, Any]]:
    """The files of a trial as optuna-dashboard lists them."""
    trial = shown_trial(overlay, study, number)
    found: list[dict[str, Any]] = list_trial_artifacts({}, trial.system_attrs, trial)
    return found


def rows(storage: Storage) -> list[Any]:
    """Everything in the database, but for what others' tests change in it."""
    with storage.optuna.engine.connect() as connection:
        tables = [table for table in sqlalchemy.inspect(connection).get_table_names() if table != "trial_heartbeats"]
        return [(each, connection.execute(sqlalchemy.text(f"SELECT * FROM {each}")).all()) for each in sorted(tables)]


# Studies


def test_nothing_of_it_is_in_the_database(storage: Storage, study: SweepStudy, overlay: Overlay) -> None:
    complete(study, 0.5, 0.7)
    before = rows(storage)
    overlay.warm()
    [mine] = [each for each in overlay.get_all_studies() if each.study_name == study.name]
    assert len(dict(mine.system_attrs)) > 3
    assert note_on(overlay, study, 0)
    assert files_of(overlay, study, 0)
    assert rows(storage) == before


def test_the_note_on_a_study(study: SweepStudy, overlay: Overlay) -> None:
    complete(study, 0.5, 0.7)
    study.prune(begin(study, 0.2), "too *weak*")
    note = note_on(overlay, study)
    assert note.startswith("a \\*plan\\*\n")
    facts = dict(re.findall(r"^\| \*\*(.*?)\*\* \| (.*) \|$", note, re.MULTILINE))
    assert facts["searched"] == "learning\\_rate 1e\\-05 to 0\\.1, logarithmic; batch\\_size 16 to 64, powers of two"
    assert facts["fixed"] == "epochs=3 model=cnn3"
    assert (facts["sampler"], facts["pruner"]) == ("tpe", "median")
    assert facts["budget"] == "20 trials; 1 points by hand are tried first"
    assert facts["data"] == "synthetic images \\(500 \\+ 100\\) \\(abc\\), 10 classes"
    assert facts["trials"] == "2 of 20 done: 1 complete, 1 pruned"
    assert facts["best"].startswith("**70.00%** validation accuracy on synthetic images")
    assert facts["best"].endswith("trial 0, the point B\\-009 \\| x")
    assert "learning\\_rate=0\\.001" in facts["its config"]
    assert facts["pruning"].startswith("1 trials ended early: 2 epochs not trained, which would have taken about 4 s")
    assert facts["training time"] == "6 s in all, on cpu \\(a model\\)"
    assert "curves" not in facts
    claims = note.partition("### What the reports claim")[2]
    assert "Test accuracies on CIFAR-10, as students' reports state them. They were not measured here" in claims
    assert "synthetic images say nothing about CIFAR-10" in claims
    assert re.search(r"^\| B\\-009 \| cnn3 \| 74\.96 % \|", claims, re.MULTILINE)
    assert not re.search(r"vgg\d+ \|", claims), "of other networks, the best alone"
    assert "Best of the other networks: 86.30 %, D\\-ens" in claims
    assert "**70.00%**" not in claims
    assert "74.96" not in note.partition("### What the reports claim")[0]


def test_note_and_figures_are_of_the_moment(
    study: SweepStudy, overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "REST", 0)
    assert "**best** | none yet" in note_on(overlay, study)
    assert get_plotly_graph_objects(overlay.get_study_system_attrs(key_of(study))) == {}
    complete(study, 0.6)
    assert "**60.00%**" in note_on(overlay, study)
    figures = get_plotly_graph_objects(overlay.get_study_system_attrs(key_of(study)))
    assert set(figures) == {"learning-rate-by-batch", "hand-beside-search", "seconds-by-trial"}
    assert all(json.loads(figure)["layout"]["height"] == 450 for figure in figures.values())
    claim = begin(study, 0.3)
    assert "1 running" in note_on(overlay, study)
    study.complete(claim, 0.8)
    assert "**80.00%**" in note_on(overlay, study)
    study.set_state(FINISHED, reason="it is *enough*")
    assert "| finished: it is \\*enough\\* |" in note_on(overlay, study)


@pytest.mark.slow
def test_they_are_not_made_anew_for_each_who_asks(
    study: SweepStudy, overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(view, "study_note", lambda *_, **__: made.append(1) or f"note {len(made)}")
    monkeypatch.setattr(view, "REST", 0)
    complete(study, 0.6)
    assert [note_on(overlay, study) for _ in range(3)] == ["note 1"] * 3, "nothing has changed"
    monkeypatch.setattr(view, "REST", 1e9)
    complete(study, 0.7)
    assert note_on(overlay, study) == "note 2"
    complete(study, 0.8)
    assert note_on(overlay, study) == "note 2", "soon after the last one"
    assert shown_trial(overlay, study, 2).value == 0.8, "the trials themselves are of the moment"


def test_short_facts_stand_for_our_data(study: SweepStudy, overlay: Overlay) -> None:
    facts = overlay.get_study_user_attrs(key_of(study))
    assert facts["data"] == "synthetic images (500 + 100) (abc)"
    assert (facts["state"], facts["sampler"], facts["budget"]) == ("open", "tpe", 20)
    assert not {"sweep", "uid"} & set(facts)
    [mine] = [each for each in overlay.get_all_studies() if each.study_name == study.name]
    assert mine.user_attrs == facts
    number = complete(study, 0.5, 0.7, 0.6)
    study.storage.optuna.set_trial_user_attr(trial_key(study, begin(study).number), "mine", "x" * 1000)
    assert shown_trial(overlay, study, number).user_attrs == {
        "label": "B-009 | x", "device": "cpu (a model)", "seconds": 6.0, "epochs_done": 3, "best_epoch": 2,
        "batch_size": 16, "epochs": 3,
    }  # fmt: skip
    assert len(shown_trial(overlay, study, number + 1).user_attrs["mine"]) == view.LONGEST_TEXT
    real = study.trials()[number].frozen
    seen = shown_trial(overlay, study, number)
    for same in ("number", "state", "values", "params", "distributions", "datetime_start", "intermediate_values"):
        assert getattr(seen, same) == getattr(real, same)


def test_a_study_of_someone_else_is_as_optuna_has_it(storage: Storage, name: str, overlay: Overlay) -> None:
    other = optuna.create_study(storage=storage.optuna, study_name=name, direction="minimize")
    other.set_user_attr("sweep", {"a": "study of ours has more"})
    other.add_trial(create_trial(value=1.0, user_attrs={"curve": [1, 2]}, intermediate_values={1: 0.5}))
    key = storage.optuna.get_study_id_from_name(name)
    save_note_with_version(storage.optuna, key, None, 1, "theirs")
    [shown_one] = [each for each in overlay.get_all_studies() if each.study_name == name]
    [real] = [each for each in storage.optuna.get_all_studies() if each.study_name == name]
    assert shown_one == real
    assert overlay.get_all_trials(key) == storage.optuna.get_all_trials(key)
    assert overlay.get_study_user_attrs(key) == storage.optuna.get_study_user_attrs(key)
    assert overlay.get_study_system_attrs(key) == storage.optuna.get_study_system_attrs(key)
    assert overlay.get_best_trial(key) == storage.optuna.get_best_trial(key)


def test_a_study_that_this_program_does_not_understand(storage: Storage, study: SweepStudy, overlay: Overlay) -> None:
    complete(study, 0.6)
    newer = storage.optuna.get_study_user_attrs(key_of(study))["sweep"] | {"sampler": {"name": "of the future"}}
    storage.optuna.set_study_user_attr(key_of(study), "sweep", newer)
    assert overlay.get_study_user_attrs(key_of(study))["sweep"] == newer
    assert "curve" in shown_trial(overlay, study, 0).user_attrs


def test_a_study_that_is_gone(storage: Storage, study: SweepStudy, overlay: Overlay) -> None:
    key = key_of(study)
    overlay.get_all_trials(key)
    optuna.delete_study(storage=storage.optuna, study_name=study.name)
    for ask in (overlay.get_all_trials, overlay.get_study_system_attrs, overlay.get_study_user_attrs):
        with pytest.raises(KeyError):
            ask(key)


def test_of_many_trials_no_curves(study: SweepStudy, overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "MOST_CURVES", 1)
    complete(study, 0.6)
    assert shown_trial(overlay, study, 0).intermediate_values == {1: 0.6}
    complete(study, 0.7)
    assert [trial.intermediate_values for trial in overlay.get_all_trials(key_of(study))] == [{}, {}]
    assert "**curves** | not drawn here, of so many trials" in note_on(overlay, study)


# Trials


def test_the_note_on_a_trial(study: SweepStudy, overlay: Overlay) -> None:
    number = complete(study, 0.5, 0.7, 0.6)
    note = note_on(overlay, study, number)
    assert note.startswith("**Complete**: 70.00% validation accuracy in the best of 3 epochs.")
    lines = re.findall(
        r"^\| (\d+) \| (\w[\w, ]*) \| 1\.5000 \| 50\.00% \| 1\.2500 \| ([\d.]+%) \|$", note, re.MULTILINE
    )
    assert lines == [("1", "first", "50.00%"), ("2", "best", "70.00%"), ("3", "last", "60.00%")]
    assert "| **point by hand** | B\\-009 \\| x |" in note
    assert "| **device** | cpu \\(a model\\), threads: 2 |" in note
    assert "| **training time** | 6 s, 2 s an epoch |" in note
    claim = begin(study, 0.4)
    assert note_on(overlay, study, claim.number).startswith("**Running**: 1 of 3 epochs are done.")
    assert re.search(r"^\| 1 \| first, best, last \|", note_on(overlay, study, claim.number), re.MULTILINE)
    study.prune(claim, "too weak")
    assert note_on(overlay, study, claim.number).startswith("**Pruned** after 1 of 3 epochs: too weak.")


def test_the_note_on_a_failed_trial(study: SweepStudy, overlay: Overlay) -> None:
    lines = "\n".join(f"line {number} of it" for number in range(40))
    study.fail(begin(study), "a [link](http://evil.example)", traceback=f"{lines}\n```\n<script>alert(1)</script>")
    note = note_on(overlay, study, 0)
    assert note.startswith("**Failed** after 0 of 3 epochs: a \\[link\\]\\(http\\:\\/\\/evil\\.example\\).")
    block = note.partition("````\n")[2].partition("\n````")[0]
    assert block.endswith("line 39 of it\n```\n<script>alert(1)</script>")
    assert "line 20 " not in block
    assert "traceback" not in shown_trial(overlay, study, 0).user_attrs


def test_a_waiting_trial(study: SweepStudy, overlay: Overlay) -> None:
    assert note_on(overlay, study, 0).startswith("**Waiting** to be trained.")
    claim = begin(study, 0.4)
    study.release(claim)
    assert note_on(overlay, study, 0).startswith("**Waiting**, to go on after epoch 1.")


def test_notes_are_asked_for_as_optuna_dashboard_does(study: SweepStudy, overlay: Overlay) -> None:
    """One after the other, and all attributes looked through for each: no note is among another trial's."""
    numbers = [complete(study, 0.1 * (1 + k)) for k in range(3)]
    attributes = overlay.get_study_system_attrs(key_of(study))
    size = len(dict(attributes))
    for number in (*numbers, *numbers):
        body = get_note_from_system_attrs(attributes, trial_key(study, number))["body"]
        assert f"{10 * (1 + number)}.00% validation accuracy" in body
        assert len(dict(attributes)) <= size + 2, "they do not pile up: there may be thousands"
    assert get_note_from_system_attrs(attributes, None)["body"].startswith("a \\*plan")


def test_kept_weights_and_the_checkpoints_of_running_trials_can_be_taken(study: SweepStudy, overlay: Overlay) -> None:
    first = complete(study, 0.5, weights=b"first")
    [file] = files_of(overlay, study, first)
    assert file["filename"] == f"{study.name}-{first}-weights.safetensors"
    assert file["mimetype"] == "application/octet-stream"
    assert re.fullmatch("[0-9a-fA-F-]+", file["artifact_id"]), "what optuna-dashboard takes in an address"
    running = begin(study, 0.1, 0.2, checkpoints=(b"one", b"two")).number
    names = [each["filename"] for each in files_of(overlay, study, running)]
    assert names == [f"{study.name}-{running}-checkpoint-000{epoch}.safetensors" for epoch in (1, 2)]
    assert files_of(overlay, study, first) == [file], "as before"
    better = complete(study, 0.9, weights=b"better")
    assert files_of(overlay, study, first) == [], "the sweep keeps one"
    assert len(files_of(overlay, study, better)) == 1
    taken = overlay.ours(key_of(study)).file(
        trial_key(study, better), files_of(overlay, study, better)[0]["artifact_id"]
    )
    assert open_artifacts(study.artifacts).get(taken.stored) == b"better"
    assert overlay.ours(key_of(study)).file(trial_key(study, first), file["artifact_id"]) is None


# Writing


@pytest.fixture
def writable(storage: Storage) -> Overlay:
    return Overlay(storage, writable=True)


def test_a_users_own_note_stands_below_ours(study: SweepStudy, overlay: Overlay, writable: Overlay) -> None:
    complete(study, 0.6)
    for number in (None, 0):
        ours = note_on(overlay, study, number)
        assert OWN_NOTE not in ours
        assert note_on(writable, study, number) == f"{ours}\n\n---\n\n{OWN_NOTE}", "a place for one"
        key = None if number is None else trial_key(study, number)
        for version, own in enumerate(("mine " * 1000, "mine\n\n- short", ""), start=1):
            save_note_with_version(writable, key_of(study), key, version, own)
            note = get_note_from_system_attrs(writable.get_study_system_attrs(key_of(study)), key)
            assert note == {"version": version, "body": f"{ours}\n\n---\n\n{OWN_NOTE}\n\n{own}".rstrip()}
            real = get_note_from_system_attrs(study.storage.optuna.get_study_system_attrs(key_of(study)), key)
            assert real["body"] == own, "ours is not written"
            assert (own.strip() in note_on(overlay, study, number)) == bool(own) or not own


def test_writes_go_to_the_database(study: SweepStudy, writable: Overlay) -> None:
    claim = begin(study, 0.4)
    writable.set_trial_user_attr(claim.trial_id, "mine", 1)
    assert study.trials()[claim.number].frozen.user_attrs["mine"] == 1
    for name in (*RESERVED, "epoch:1"):
        with pytest.raises(HTTPError, match=f"{name} is cifar-sweep's own"):
            writable.set_trial_user_attr(claim.trial_id, name, "spoiled")
    assert study.trials()[claim.number].points == [point(1, 0.4)]
    writable.set_trial_state_values(claim.trial_id, TrialState.FAIL)
    assert study.trials()[claim.number].state == "failed"


def test_all_that_our_programs_write_of_a_trial_is_reserved(study: SweepStudy) -> None:
    number = complete(study, 0.5)
    study.fail(begin(study, 0.2), "why", traceback="where")
    names = {name for trial in study.trials() for name in trial.frozen.user_attrs}
    assert {"weights", "curve", "traceback"} <= names <= RESERVED
    assert number == 0


@pytest.mark.parametrize("with_files", [False, True])
def test_a_study_is_deleted_with_its_files_if_they_are_to_go(
    study: SweepStudy, writable: Overlay, with_files: bool
) -> None:
    number = complete(study, 0.5)
    [file] = files_of(writable, study, number)
    folder = Path(study.artifacts)
    stored = open_artifacts(study.artifacts).put(
        f"{study.name}-{study.uid}/trial-0000/weights-0123abcd.safetensors", b"left"
    )
    if with_files:  # as optuna-dashboard asks before it deletes the study
        writable.remove(file["artifact_id"])
    writable.delete_study(key_of(study))
    assert study.name not in optuna.get_all_study_names(study.storage.optuna)
    assert (folder / stored.name).exists() != with_files


def test_a_study_whose_trials_are_trained_is_not_deleted(study: SweepStudy, writable: Overlay) -> None:
    begin(study, 0.2)
    with pytest.raises(HTTPError, match="1 of its trials are being trained"):
        writable.delete_study(key_of(study))
    assert study.name in optuna.get_all_study_names(study.storage.optuna)


def test_anothers_study_is_deleted_as_optuna_does(storage: Storage, name: str, writable: Overlay) -> None:
    writable.delete_study(writable.create_new_study([StudyDirection.MINIMIZE], name))
    assert name not in optuna.get_all_study_names(storage.optuna)


# A database that may only be read


@pytest.fixture
def reader(storage: Storage, url: str, tmp_path: Path) -> Iterator[Callable[[], Storage]]:
    """Opens the database as an account that may read and nothing else. Of PostgreSQL: SQLite has no accounts."""
    if not url.startswith("postgresql"):
        pytest.skip("SQLite has no accounts")
    with storage.optuna.engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP ROLE IF EXISTS only_reads"))
        connection.execute(sqlalchemy.text("CREATE ROLE only_reads LOGIN IN ROLE pg_read_all_data"))
    opened: list[Storage] = []

    def open_it() -> Storage:
        address = make_url(url).set(username="only_reads", password=None).render_as_string(hide_password=False)
        opened.append(open_existing(address))
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()
    with storage.optuna.engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP ROLE only_reads"))


def test_an_account_that_may_read_is_enough(study: SweepStudy, reader: Callable[[], Storage]) -> None:
    number = complete(study, 0.6)
    with closing(reader()) as storage:
        overlay = Overlay(storage, writable=False)
        assert "**60.00%**" in note_on(overlay, study)
        assert files_of(overlay, study, number)
        with pytest.raises(StorageInternalError) as refused:
            storage.optuna.set_study_user_attr(key_of(study), "a", 1)
        assert "permission denied" in str(explain(refused.value))
