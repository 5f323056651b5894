"""Looking at studies: `status`, `report`, `compare`, `plot`, `replay`, `dashboard`."""

import functools
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from cifar_sweep.cli import rooms
from cifar_sweep.cli.bundles import ImageOptions, StorageOptions
from cifar_sweep.cli.options import StudyName, echo_json, say, say_of, terminal
from cifar_sweep.errors import CifarSweepError, UsageError
from cifar_sweep.files import replace_file
from cifar_sweep.work.signals import stop_on_signals

HOST = "Address to bind; other than 127.0.0.1 it needs CIFAR_SWEEP_TOKEN."
ALLOW_WRITE = "Let its page write notes, end trials, delete studies; else read only."
FORMATS = "html: a page that opens offline; md: in short; csv: a row for each trial."
Pruners = Literal["none", "median", "percentile", "asha", "hyperband"]
OUT = "File to write, - for standard output; STUDY-report.FORMAT if not given."
NO_IMAGES = "Measure nothing, and show no images: the database is enough."


def status(
    study: StudyName = None,
    as_json: Annotated[bool, Option("--json", help="As JSON; accuracies are fractions.")] = False,
    *,
    place: StorageOptions,
) -> None:
    """Show how far each study is, its best accuracy, and how long it still takes."""
    storage = place.open()
    studies = rooms.opening.load_all(storage) if study is None else [rooms.opening.load(storage, study)]
    glances = [rooms.status.glance(each) for each in studies]
    if as_json:
        echo_json({"studies": glances})
        return
    terminal().print(rooms.status.table(glances) if glances else f"{storage.shown} holds no study yet.", soft_wrap=True)
    for each in glances:
        for words in filter(None, (each["verdict"], each["gain"] and each["gain"]["text"])):
            say(f"{each['name']}: {words}")
    for line in rooms.status.remarks(glances[0]) if len(glances) == 1 else []:
        say(line)


def compare(
    study: Annotated[str, Option(help="The study of the hand runs.")] = "reports",
    figure: Annotated[Path | None, Option(help="HTML file to write, with the figure.")] = None,
    as_json: Annotated[bool, Option("--json", help="As JSON: claims in percent, measured as fractions.")] = False,
    *,
    options: ImageOptions,
) -> None:
    """Show what was claimed of each hand run beside what was measured, and the sweeps' best beside the best by hand.

    The test set is read once for each complete hand run and for each sweep's best trial, and remembered in the study.
    """
    on = rooms.device.resolve_device(options.device)
    rooms.device.prepare_process(on, threads=0)
    hand, sweeps = rooms.compare.collect(
        rooms.opening.load_all(options.open()),
        hand=study,
        artifacts_of=options.files_of,
        device=on,
        images_of=lambda each: options.images_of(each, quiet=as_json),
    )
    if figure is not None:
        rooms.plot.comparison_page(figure, hand)
    if as_json:
        echo_json(rooms.compare.as_json(hand, sweeps))
        return
    for view in rooms.compare.tables(hand, sweeps):
        terminal().print(view)
    if figure is not None:
        say(f"written: {figure}")


def replay(
    study: StudyName = None,
    sampler: Annotated[Literal["tpe", "random"] | None, Option(help="The sampler of the other strategy.")] = None,
    pruner: Annotated[Pruners | None, Option(help="Its pruner; median if not given.")] = None,
    strategy: Annotated[Literal["auto"] | None, Option(help="auto, instead of a sampler and a pruner.")] = None,
    replays: Annotated[int, Option(min=1, help="How often it searches, each time with another seed.")] = 20,
    as_json: Annotated[bool, Option("--json", help="As JSON; null is never.")] = False,
    *,
    place: StorageOptions,
) -> None:
    """Say what another strategy would have cost on a study's own curves; nothing is trained."""
    asked = {key: value for key, value in (("sampler", sampler), ("pruner", pruner)) if value is not None}
    if strategy and asked:
        raise UsageError(
            "--strategy auto has its own sampler and pruner; accepted: it alone, or --sampler and --pruner."
        )
    chosen: dict[str, str] = {**asked} or {"strategy": "auto"}
    searched = place.load(study)
    found = rooms.recorded.replay_study(searched, chosen, replays=replays)
    if as_json:
        echo_json({"study": searched.name, "strategy": chosen} | found.described())
    else:
        say_of("replay", study=searched.name, strategy=chosen, found=found)


def plot(
    study: StudyName = None,
    trials: Annotated[int, Option(min=1, help="Curves of so many of the best trials.")] = 5,
    out: Annotated[Path | None, Option(help="HTML file to write; STUDY.html if not given.")] = None,
    *,
    place: StorageOptions,
) -> None:
    """Draw the best trials' loss and accuracy curves, and accuracy by learning rate, into a page that opens offline."""
    drawn = place.load(study)
    path = out or Path(f"{drawn.name}.html")
    rooms.plot.study_page(path, drawn, curves=trials)
    say(f"written: {path}")


def dashboard(
    host: Annotated[str, Option(help=HOST)] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    allow_write: Annotated[bool, Option("--allow-write", help=ALLOW_WRITE)] = False,
    *,
    place: StorageOptions,
) -> None:
    """Serve optuna-dashboard until Ctrl-C, with notes, figures and files of each study. It is for reading only."""
    opened = rooms.storage.open_waiting(place.storage)
    where: dict[str, Any] = {"host": host, "port": port, "allow_write": allow_write}
    with stop_on_signals() as stop:
        rooms.server.serve(opened, **where, stop=stop, say=lambda url: say(f"dashboard of {opened.shown} on {url}"))


def report(
    study: StudyName = None,
    form: Annotated[Literal["html", "md", "csv"], Option("--format", help=FORMATS)] = "html",
    out: Annotated[str | None, Option(help=OUT)] = None,
    no_images: Annotated[bool, Option("--no-images", help=NO_IMAGES)] = False,
    *,
    options: ImageOptions,
) -> None:
    """Write what a study came to: the best config beside the best by hand, the search, the mistakes, every trial.

    The test set is read once for the best trial, unless its test accuracy is remembered, and remembered in the study.
    """
    storage = options.open()
    told = rooms.opening.load(storage, study)
    wanted = form != "csv" and not no_images
    findings = _look(told, options, pictures=form == "html") if wanted else rooms.facts.ImageFindings()
    name = rooms.facts.REPORTS
    reports = next((each for each in rooms.opening.load_all(storage) if each.sweep.given and each.name == name), None)
    render = {"html": rooms.page.render, "md": rooms.text.markdown, "csv": rooms.text.trials_csv}
    written = render[form](rooms.facts.collect(told, findings=findings, reports=reports))
    if out == "-":
        sys.stdout.buffer.write(written.encode(errors="replace"))
        sys.stdout.buffer.flush()
        return
    path = Path(out) if out else Path(f"{told.name}-report.{form}")
    replace_file(path, written)
    say(f"written: {path}")


def _look(study: "rooms.study.SweepStudy", options: ImageOptions, *, pictures: bool) -> "rooms.facts.ImageFindings":
    """What the best trial's network makes of the images, where there is one and that is still to be found out."""
    best = next(iter(study.ranked()), None)
    if best is None or not (pictures or study.test_accuracy([best.number]) is None):
        return rooms.facts.ImageFindings()
    on = rooms.device.resolve_device(options.device)
    rooms.device.prepare_process(on, threads=0)
    try:
        files = options.files_of(study)
    except CifarSweepError as error:
        return rooms.facts.ImageFindings(missing=str(error))
    images = functools.partial(options.images_of, study, quiet=True)
    return rooms.mistakes.look_at_images(study, best, images, artifacts=files, device=on, pictures=pictures)
