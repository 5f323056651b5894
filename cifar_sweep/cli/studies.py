"""Looking at studies: `status`, `report`, `compare`, `plot`, `dashboard`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cifar_sweep.cli.options import (
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
from cifar_sweep.config import DEFAULT_STORAGE

if TYPE_CHECKING:
    from rich.console import Console

    from cifar_sweep.report.facts import ImageFindings
    from cifar_sweep.study.study import SweepStudy


def status(
    study: StudyName = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; accuracies are fractions.")] = False,
    storage: StorageUrl = DEFAULT_STORAGE,
) -> None:
    """Show how far each study is, its best accuracy, and how long it still takes."""
    from cifar_sweep.study.opening import load, load_all
    from cifar_sweep.study.storage import open_existing
    from cifar_sweep.terminal.status import glance, table

    opened = open_existing(storage)
    studies = load_all(opened) if study is None else [load(opened, study)]
    glances = [glance(each) for each in studies]
    if as_json:
        typer.echo(json.dumps({"studies": glances}, indent=2))
    else:
        terminal().print(table(glances) if glances else f"{opened.shown} holds no study yet.", soft_wrap=True)


def compare(
    study: Annotated[str, typer.Option(help="The study of the hand runs.")] = "reports",
    figure: Annotated[Path | None, typer.Option(help="HTML file to write, with the figure.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: claims in percent, measured as fractions.")] = False,
    device: Device = "auto",
    data: SameData = None,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Show what was claimed of each hand run beside what was measured, and the sweeps' best beside the best by hand.

    The test set is read once for each complete hand run and for each sweep's best trial, and remembered in the study.
    """
    from cifar_sweep.hand.compare import as_json as plain
    from cifar_sweep.hand.compare import collect, tables
    from cifar_sweep.report.plot import comparison_page
    from cifar_sweep.study.opening import load_all
    from cifar_sweep.study.storage import open_existing
    from cifar_sweep.training.device import prepare_process, resolve_device

    on = resolve_device(device)
    prepare_process(on, threads=0)
    console = terminal()
    hand, sweeps = collect(
        load_all(open_existing(storage)),
        hand=study,
        artifacts_of=lambda each: artifacts_of(each, artifacts),
        device=on,
        images_of=lambda each: data_of_study(each, data, console, quiet=as_json),
    )
    if figure is not None:
        comparison_page(figure, hand)
    if as_json:
        typer.echo(json.dumps(plain(hand, sweeps), indent=2))
        return
    for view in tables(hand, sweeps):
        console.print(view)
    if figure is not None:
        printer(console)(f"written: {figure}")


def plot(
    study: StudyName = None,
    trials: Annotated[int, typer.Option(min=1, help="Curves of so many of the best trials.")] = 5,
    out: Annotated[Path | None, typer.Option(help="HTML file to write; STUDY.html if not given.")] = None,
    storage: StorageUrl = DEFAULT_STORAGE,
) -> None:
    """Draw the best trials' loss and accuracy curves, and accuracy by learning rate, into a page that opens offline."""
    from cifar_sweep.report.plot import study_page
    from cifar_sweep.study.opening import load
    from cifar_sweep.study.storage import open_existing

    the_study = load(open_existing(storage), study)
    path = out or Path(f"{the_study.name}.html")
    study_page(path, the_study, curves=trials)
    printer(terminal())(f"written: {path}")


def dashboard(
    host: Annotated[
        str, typer.Option(help="Address to bind; other than 127.0.0.1 it needs CIFAR_SWEEP_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    allow_write: Annotated[
        bool,
        typer.Option("--allow-write", help="Let its page write notes, end trials, delete studies; else read only."),
    ] = False,
    storage: StorageUrl = DEFAULT_STORAGE,
) -> None:
    """Serve optuna-dashboard until Ctrl-C, with notes, figures and files of each study. It is for reading only."""
    from cifar_sweep.dashboard.server import serve
    from cifar_sweep.study.storage import open_existing
    from cifar_sweep.work.signals import stop_on_signals

    opened = open_existing(storage)
    with stop_on_signals() as stop:
        serve(
            opened,
            host=host,
            port=port,
            allow_write=allow_write,
            stop=stop,
            on_ready=lambda url: typer.echo(f"dashboard of {opened.shown} on {url}"),
        )


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
    from cifar_sweep.report.facts import REPORTS, ImageFindings, collect
    from cifar_sweep.study.opening import load, load_all
    from cifar_sweep.study.storage import open_existing

    opened = open_existing(storage)
    the_study = load(opened, study)
    console = terminal()
    findings = ImageFindings()
    if form != "csv" and not no_images:
        findings = _look(the_study, console, device=device, data=data, artifacts=artifacts, pictures=form == "html")
    reports = next((each for each in load_all(opened) if each.sweep.given and each.name == REPORTS), None)
    facts = collect(the_study, findings=findings, reports=reports)
    if form == "html":
        from cifar_sweep.report.page import render

        text = render(facts)
    else:
        from cifar_sweep.report.text import markdown, trials_csv

        text = markdown(facts) if form == "md" else trials_csv(facts)
    if out == "-":
        sys.stdout.buffer.write(text.encode(errors="replace"))
        sys.stdout.buffer.flush()
        return
    from cifar_sweep.report.words import write

    path = Path(out) if out else Path(f"{the_study.name}-report.{form}")
    write(path, text)
    printer(console)(f"written: {path}")


def _look(
    study: "SweepStudy", console: "Console", *, device: str, data: str | None, artifacts: str | None, pictures: bool
) -> "ImageFindings":
    """What the best trial's network makes of the images, where there is one and that is still to be found out."""
    from cifar_sweep.errors import CifarSweepError
    from cifar_sweep.report.facts import ImageFindings

    best = next(iter(study.ranked_records()), None)
    if best is None or not (pictures or study.test_accuracy([best.number]) is None):
        return ImageFindings()
    from cifar_sweep.report.mistakes import look_at_images
    from cifar_sweep.training.device import prepare_process, resolve_device

    on = resolve_device(device)
    prepare_process(on, threads=0)
    try:
        store = artifacts_of(study, artifacts)
    except CifarSweepError as error:
        return ImageFindings(missing=str(error))
    return look_at_images(
        study,
        best,
        lambda: data_of_study(study, data, console, quiet=True),
        artifacts=store,
        device=on,
        pictures=pictures,
    )
