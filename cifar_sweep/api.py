"""cifar-sweep from Python, in a notebook as in a script: load a sweep, run it, look at its trials, take the best away.

from cifar_sweep import load_sweep, run_sweep

study = run_sweep(load_sweep("lr_batch", settings={"trials": 12, "epochs": 5}))
study.trials()                     # a pandas DataFrame, a row for each trial
study.curves()                     # a row for each epoch of each trial
network = study.best().network()   # a plain torch module with the best trial's weights
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import plotly.graph_objects as go  # type: ignore[import-untyped]
from rich.console import Console
from torch import nn

from cifar_sweep.artifacts import Artifacts, open_artifacts
from cifar_sweep.config import DEFAULT_STORAGE, TrialConfig
from cifar_sweep.errors import StudyError, UsageError, nearest
from cifar_sweep.exports import trained
from cifar_sweep.exports import write as export
from cifar_sweep.figures.by_name import FIGURES
from cifar_sweep.forecast.costs import images_of, note_costs
from cifar_sweep.machine.plan import choose
from cifar_sweep.parameters import Value
from cifar_sweep.study import opening
from cifar_sweep.study.record import TrialRecord, counts_text
from cifar_sweep.study.storage import open_existing
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.file import find, from_mapping, load
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.terminal.progress import shown
from cifar_sweep.terminal.status import glance
from cifar_sweep.training.device import prepare_process, resolve_device
from cifar_sweep.training.images import data as images
from cifar_sweep.work.signals import stop_on_signals
from cifar_sweep.work.submit import submit
from cifar_sweep.work.worker import Job, run_workers

# What `Study.trials` shows of each trial besides its parameters; see `TrialRecord`.
_COLUMNS = (
    "number", "state", "value", "accuracy", "epochs_done", "epochs", "seconds", "label", "confirms", "device", "worker",
    "started", "ended", "seed", "weights_bytes", "reason",
)  # fmt: skip


def load_sweep(
    source: str | Path | Mapping[str, Any],
    *,
    settings: Mapping[str, Value] | None = None,
    preview: bool = False,
    only: Sequence[str] = (),
) -> Sweep:
    """A sweep to run; UsageError where there is none, or a key or value is not accepted.

    Args:
        source: its name (as `cifar-sweep list` shows them), the path of a TOML file, or what such a file would hold.
        settings: as the command line's ``--set``: ``{"trials": 20, "epochs": 5, "batch_size": 32, "pruner": "none"}``.
        preview: the same sweep at a small part of its cost.
        only: of a sweep of given runs, these labels.
    """
    options: dict[str, Any] = {"changes": settings, "preview": preview, "only": only}
    if isinstance(source, Mapping):
        return from_mapping(source, where="load_sweep", **options)
    return load(find(str(source)), **options)


def run_sweep(
    sweep: Sweep | str | Path | Mapping[str, Any],
    *,
    study: str | None = None,
    data: str | Path | None = None,
    workers: int = 0,
    group: int = 0,
    threads: int = 0,
    device: str = "auto",
    max_hours: float | None = None,
    skip_damaged: bool = False,
    storage: str | None = None,
    artifacts: str | Path | None = None,
    progress: bool = True,
) -> "Study":
    """Run a sweep, or continue it, as ``cifar-sweep run`` does; Ctrl-C ends it early, and the next call goes on.

    Raises CifarSweepError, in one sentence, where the sweep, the data, the device, the storage or the disk is at fault.

    Args:
        sweep: what `load_sweep` gives or takes.
        study: name of the study; the sweep's if not given.
        data: as `images.data.load` takes it: auto, a name, a folder, synthetic:N; CIFAR_SWEEP_DATA if not given.
        workers: processes that train; 0 takes what is measured to be fastest, as for `group`.
        group: trials of one shape that each worker trains at once.
        threads: CPU threads of each worker; 0 shares the cores out.
        device: auto, cpu, cuda or cuda:N.
        max_hours: stop after so long.
        skip_damaged: leave out images that cannot be read; the study notes them.
        storage: sqlite:///FILE or postgresql://USER@HOST/DATABASE; CIFAR_SWEEP_STORAGE, or studies.db, if not given.
        artifacts: where checkpoints and weights go; where the study has them if not given, artifacts/ at first.
        progress: whether to show how far it is.
    """
    chosen = sweep if isinstance(sweep, Sweep) else load_sweep(sweep)
    resolve_device(device)
    source = str(data or os.environ.get("CIFAR_SWEEP_DATA", "auto"))
    storage = storage or os.environ.get("CIFAR_SWEEP_STORAGE", DEFAULT_STORAGE)
    console = Console(quiet=not progress)
    say = console.print if progress else None
    loaded = images.load(source, on_progress=say, side=chosen.image_size, skip_damaged=skip_damaged)
    for note in loaded.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    folder = str(artifacts) if artifacts is not None else None
    made = submit(storage, study or chosen.name, chosen, loaded, source=source, artifacts=folder)
    given: dict[str, Any] = {"device": device, "workers": workers, "threads": threads, "group": group}
    plan = choose([chosen], **given, say=console.print, train_images=images_of(made))
    if plan.costs:
        note_costs(made, plan.costs)
    deadline = time.time() + 3600 * max_hours if max_hours is not None else None
    job = Job(storage, (made.name,), data=source, device=device, deadline=deadline)
    with stop_on_signals() as stop, shown(made, console) if progress else nullcontext():
        run_workers(job, plan, stop=stop)
    return load_study(made.name, storage=storage, artifacts=artifacts)


def load_study(name: str | None = None, *, storage: str | None = None, artifacts: str | Path | None = None) -> "Study":
    """A study by name; without one the only one of the database. Raises StudyError where there is none, or several."""
    found = opening.load(open_existing(storage or os.environ.get("CIFAR_SWEEP_STORAGE", DEFAULT_STORAGE)), name)
    return Study(found, open_artifacts(str(artifacts) if artifacts is not None else found.artifacts))


@dataclass(frozen=True)
class Study:
    """A study's results, as they are when they are asked for. Accuracies are fractions, times seconds."""

    _study: SweepStudy
    _artifacts: Artifacts

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {counts_text(self._study.summary()['trials'])})"

    @property
    def name(self) -> str:
        """Its name in the database."""
        return self._study.name

    @property
    def sweep(self) -> Sweep:
        """What it searches."""
        return self._study.sweep

    def summary(self) -> dict[str, Any]:
        """What ``cifar-sweep status --json`` says of it."""
        return glance(self._study)

    def trials(self) -> pd.DataFrame:
        """A row for each trial, by number: its state, value (its best epoch's, by the metric), parameters, and more."""
        trials = self._study.trials()
        rows = [{name: getattr(trial, name) for name in _COLUMNS} | dict(trial.params) for trial in trials]
        return pd.DataFrame(rows).set_index("number") if rows else pd.DataFrame()

    def curves(self) -> pd.DataFrame:
        """A row for each epoch of each trial: losses (nats), accuracies, learning rate, seconds."""
        points = [{"trial": trial.number, **point.to_dict()} for trial in self._study.trials() for point in trial.curve]
        return pd.DataFrame(points).set_index(["trial", "epoch"]) if points else pd.DataFrame()

    def best(self) -> "Trial":
        """The best complete trial, by the metric. Raises StudyError where no trial is complete."""
        return self.trial(None)

    def trial(self, number: int | None) -> "Trial":
        """A complete trial by number. Raises StudyError where there is none."""
        return Trial(self._study, self._artifacts, trained.pick(self._study, number))

    def figure(self, name: str) -> go.Figure:
        """A plotly figure: one of `cifar_sweep.figures.by_name.FIGURES`; StudyError before an epoch has ended."""
        if name not in FIGURES:
            raise UsageError(f"figure {name!r}: {nearest(name, FIGURES)}.")
        if not any(trial.curve for trial in self._study.trials()):
            raise StudyError(f"study {self.name!r} has no trial with a finished epoch to draw; run it first.")
        return FIGURES[name](self._study)


@dataclass(frozen=True)
class Trial:
    """A complete trial."""

    _study: SweepStudy
    _artifacts: Artifacts
    _trial: TrialRecord

    def __repr__(self) -> str:
        return f"Trial({self.number}, validation_accuracy={self.validation_accuracy:.4f}, params={self.params})"

    @property
    def number(self) -> int:
        """Its number in the study."""
        return self._trial.number

    @property
    def validation_accuracy(self) -> float:
        """Of its best epoch, by the study's metric."""
        return float(self._trial.accuracy or 0.0)

    @property
    def params(self) -> dict[str, Value]:
        """What was searched."""
        return dict(self._trial.params)

    @property
    def config(self) -> TrialConfig:
        """All that it trained, complete."""
        assert self._trial.config is not None  # of a complete trial
        return self._trial.config

    def network(self) -> nn.Module:
        """The network with its best weights, on the CPU in evaluation mode.

        From images [n, 3, side, side] in [0, 1], normalised where its config says so, to logits [n, classes]. Raises
        StudyError where its weights were not kept, or the file is damaged.
        """
        return trained.trained_trial(self._study, self._trial, self._artifacts).network().eval()

    def export(self, folder: str | Path, *, data: str | Path | None = None, device: str = "auto") -> dict[str, Any]:
        """Write config, weights, metrics and model card, as ``cifar-sweep export`` does. Returns the metrics.

        The test set is read for it. `data` is where the images are, if not where the study found them. Raises
        StudyError where the weights were not kept, or these are other images.
        """
        network = trained.trained_trial(self._study, self._trial, self._artifacts)
        named = str(data) if data is not None else None
        loaded = trained.images_of(self._study, named, may_download=data is not None)
        on = resolve_device(device)
        prepare_process(on, threads=network.provenance.threads)
        metrics = export.write(Path(folder), [network], data=loaded, device=on)
        self._study.record_test([self.number], metrics["test_accuracy"])
        return metrics
