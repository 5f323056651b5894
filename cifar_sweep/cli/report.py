"""A study's report: `report`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cifar_sweep.cli.options import (
    DEFAULT_STORAGE,
    Artifacts,
    Device,
    SameData,
    StorageUrl,
    StudyName,
    artifacts_of,
    data_of_study,
    printer,
    terminal,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cifar_sweep.results.report import Closer
    from cifar_sweep.search.study import SweepStudy


def report(
    study: StudyName = None,
    form: Annotated[
        Literal["html", "md", "csv"],
        typer.Option("--format", help="html: a page that opens offline; md: in short; csv: a row for each trial."),
    ] = "html",
    out: Annotated[
        str | None, typer.Option(help="File to write, - for standard output; STUDY-report.FORMAT if not given.")
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Measure nothing, and show no images: the database is enough.")
    ] = False,
    device: Device = "auto",
    data: SameData = None,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Write what a study came to: the best config beside the best by hand, the search, the mistakes, every trial.

    The test set is read once for the best trial, unless its test accuracy is remembered, and remembered in the study.
    """
    from cifar_sweep.results.report import REPORTS, Closer, collect
    from cifar_sweep.search.opening import load, load_all
    from cifar_sweep.search.storage import open_existing

    opened = open_existing(storage)
    the_study = load(opened, study)
    console = terminal()
    closer = Closer()
    if form != "csv" and not no_images:
        closer = _look(the_study, console, device=device, data=data, artifacts=artifacts, pictures=form == "html")
    reports = next((each for each in load_all(opened) if each.sweep.given and each.name == REPORTS), None)
    facts = collect(the_study, closer=closer, reports=reports)
    if form == "html":
        from cifar_sweep.results.report_page import render

        text = render(facts)
    else:
        from cifar_sweep.results.report_text import markdown, trials_csv

        text = markdown(facts) if form == "md" else trials_csv(facts)
    if out == "-":
        sys.stdout.buffer.write(text.encode(errors="replace"))
        sys.stdout.buffer.flush()
        return
    from cifar_sweep.results.report_words import write

    path = Path(out) if out else Path(f"{the_study.name}-report.{form}")
    write(path, text)
    printer(console)(f"written: {path}")


def _look(
    study: "SweepStudy", console: "Console", *, device: str, data: str | None, artifacts: str | None, pictures: bool
) -> "Closer":
    """What the best trial's network makes of the images, where there is one and that is still to be found out."""
    from cifar_sweep.errors import CifarSweepError
    from cifar_sweep.results.report import Closer

    best = next(iter(study.ranked()), None)
    if best is None or not (pictures or study.test_accuracy([best.number]) is None):
        return Closer()
    from cifar_sweep.results.mistakes import look_closer
    from cifar_sweep.training.device import prepare_process, resolve_device

    on = resolve_device(device)
    prepare_process(on, threads=0)
    try:
        store = artifacts_of(study, artifacts)
    except CifarSweepError as error:
        return Closer(missing=str(error))
    return look_closer(
        study,
        best,
        lambda: data_of_study(study, data, console, quiet=True),
        artifacts=store,
        device=on,
        pictures=pictures,
    )
