"""Looking at studies: `status`, `compare`, `plot`, `dashboard`."""

import json
from pathlib import Path
from typing import Annotated

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


def status(
    study: StudyName = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; accuracies are fractions.")] = False,
    storage: StorageUrl = DEFAULT_STORAGE,
) -> None:
    """Show how far each study is, its best accuracy, and how long it still takes."""
    from cifar_sweep.results.status import glance, table
    from cifar_sweep.search.opening import load, load_all
    from cifar_sweep.search.storage import open_existing

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
    from cifar_sweep.results.compare import as_json as plain
    from cifar_sweep.results.compare import collect, tables
    from cifar_sweep.results.figures import comparison_page
    from cifar_sweep.search.opening import load_all
    from cifar_sweep.search.storage import open_existing
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
    from cifar_sweep.results.figures import study_page
    from cifar_sweep.search.opening import load
    from cifar_sweep.search.storage import open_existing

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
    from cifar_sweep.launch.signals import stop_on_signals
    from cifar_sweep.results.dashboard import serve
    from cifar_sweep.search.storage import open_existing

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
