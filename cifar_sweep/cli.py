"""The commands: parse, call, print. The only place that turns an error into an exit code.

Heavy modules are imported inside the commands, so that `cifar-sweep --help` loads neither torch nor Optuna.
"""

import json
import logging
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifar_sweep.config import Value
from cifar_sweep.errors import CifarSweepError, StudyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from cifar_sweep.runner import Job
    from cifar_sweep.search.study import SweepStudy
    from cifar_sweep.training.data import ImageData

app = typer.Typer(
    help="Hyperparameter sweeps for CIFAR-sized convolutional networks: run, watch, and take the best weights away.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Data = Annotated[
    str,
    typer.Option(
        envvar="CIFAR_SWEEP_DATA",
        help="auto (CIFAR-10 in data/, else downloaded), a folder (torchvision's, or {train,test}/CLASS/*), "
        "synthetic, or synthetic:N for N training images.",
    ),
]
SameData = Annotated[
    str | None, typer.Option("--data", envvar="CIFAR_SWEEP_DATA", help="As in `run`; the same data if not given.")
]
StorageUrl = Annotated[
    str,
    typer.Option("--storage", envvar="CIFAR_SWEEP_STORAGE", help="sqlite:///FILE or postgresql://USER@HOST/DATABASE."),
]
Artifacts = Annotated[
    Path, typer.Option(envvar="CIFAR_SWEEP_ARTIFACTS", help="Folder of checkpoints and kept weights.")
]
Device = Annotated[str, typer.Option(help="auto (CUDA when there is one), cpu, cuda, or cuda:N.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads of each worker; 0 shares the cores out.")]
StudyName = Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Study; the only one, if there is one.")]
DEFAULT_STORAGE = "sqlite:///studies.db"
DEFAULT_ARTIFACTS = Path("artifacts")


@app.command()
def run(
    sweep: Annotated[str, typer.Argument(help="A sweep by name (see `cifar-sweep list`), or a path to a TOML file.")],
    trials: Annotated[int | None, typer.Option(min=1, help="Finish exactly so many trials, restarts included.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each trial.")] = None,
    train_images: Annotated[int | None, typer.Option(min=1, help="Train on so many of the training images.")] = None,
    workers: Annotated[
        int,
        typer.Option(min=0, help="Trials trained at a time, each in a process; 0: one per GPU or core, up to 4."),
    ] = 0,
    threads: Threads = 0,
    device: Device = "auto",
    data: Data = "auto",
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the whole sweep.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Fix a parameter (batch_size=32) or a key (pruner=none)."),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Of a sweep of given runs these, as in B-009,C-1.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="The same sweep at a small part of its cost.")] = False,
    max_hours: Annotated[float | None, typer.Option(min=0, help="Stop after so long; run again to go on.")] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study; the sweep's name if not given.")] = None,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
) -> None:
    """Run a sweep, or continue it: the same command goes on where the last one stopped."""
    from cifar_sweep.launch.local import run_workers, stop_on_signals
    from cifar_sweep.results.progress import shown
    from cifar_sweep.runner import check_images, facts, local_jobs
    from cifar_sweep.search.storage import open_storage
    from cifar_sweep.search.study import check_request, open_or_resume
    from cifar_sweep.search.sweepfile import find, load
    from cifar_sweep.training.device import resolve_device

    options = {"trials": trials, "epochs": epochs, "train_images": train_images, "seed": seed}
    changes = _settings(settings or []) | {name: value for name, value in options.items() if value is not None}
    deadline = time.time() + 3600 * max_hours if max_hours is not None else None
    labels = [label.strip() for label in only.split(",")] if only is not None else []
    chosen = load(find(sweep), changes=changes, preview=preview, only=labels)
    resolve_device(device)
    console = _console()
    source, images = _load_data(data, console, download=not preview)
    check_images(chosen, images)
    name = study or chosen.name + ("-preview" if preview else "")
    check_request(name, chosen)
    the_study = open_or_resume(open_storage(storage), name, chosen, data=facts(images, source=source))
    jobs = local_jobs(
        storage, name, source,
        artifacts=artifacts, device=device, threads=threads, deadline=deadline, workers=workers,
    )  # fmt: skip
    _say_start(the_study, jobs, console)
    with stop_on_signals() as stop, shown(the_study, console):
        run_workers(jobs, stop=stop)
    _say_end(the_study, jobs[0], console)
    raise typer.Exit(stop.exit_code())


@app.command("list")
def list_sweeps() -> None:
    """Show the sweeps that can be run by name."""
    from rich.table import Table

    from cifar_sweep.search.sweepfile import load, names

    view = Table("sweep", "trials", "searches", "what for", box=None)
    for name, path in names().items():
        sweep = load(path)
        view.add_row(name, str(sweep.size), ", ".join(sweep.space), sweep.description)
    _console().print(view)


@app.command()
def status(
    study: StudyName = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; accuracies are fractions.")] = False,
    storage: StorageUrl = DEFAULT_STORAGE,
) -> None:
    """Show how far each study is, and its best trial."""
    from cifar_sweep.results.status import table
    from cifar_sweep.search.storage import open_existing
    from cifar_sweep.search.study import load, load_all

    opened = open_existing(storage)
    studies = load_all(opened) if study is None else [load(opened, study)]
    summaries = [each.summary() for each in studies]
    if as_json:
        typer.echo(json.dumps({"studies": summaries}, indent=2))
    else:
        _console().print(table(summaries) if summaries else f"{opened.shown} holds no study yet.", soft_wrap=True)


@app.command()
def export(
    study: StudyName = None,
    trial: Annotated[int | None, typer.Option(min=0, help="Its number; the best complete trial if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; exports/STUDY-TRIAL if not given.")] = None,
    device: Device = "auto",
    data: SameData = None,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
) -> None:
    """Write a trial's config, weights, metrics and model card, with its test accuracy, measured here."""
    from cifar_sweep.config import TrialConfig
    from cifar_sweep.results.export import pick, provenance_of, stored_weights, write
    from cifar_sweep.search.storage import open_existing
    from cifar_sweep.search.study import load
    from cifar_sweep.training.device import prepare_process, resolve_device

    the_study = load(open_existing(storage), study)
    chosen = pick(the_study, trial)
    weights = stored_weights(the_study, chosen, artifacts)
    on = resolve_device(device)
    console = _console()
    _, images = _load_data(data or the_study.data["source"], console, download=True)
    if images.fingerprint != the_study.data["fingerprint"]:
        raise StudyError(
            f"study {the_study.name!r} was run on {the_study.data['name']}, not on {images.name}; "
            "name its data with --data."
        )
    provenance = provenance_of(the_study, chosen)
    prepare_process(on, threads=provenance.threads)
    folder = out or Path("exports") / f"{the_study.name}-{chosen.number}"
    config = TrialConfig.from_dict(chosen.user_attrs["config"])
    curve = chosen.user_attrs["curve"]
    metrics = write(folder, config, weights, curve=curve, data=images, device=on, provenance=provenance)
    _say_export(folder, metrics, console)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="The config.toml of an export, or its folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; the export's, with -again, if not given.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes the export's number.")] = 0,
    device: Annotated[str | None, typer.Option(help="As in `run`; the export's kind if not given.")] = None,
    data: SameData = None,
) -> None:
    """Train an exported config again, from its first epoch, and write it as an export of its own."""
    from cifar_sweep.launch.local import stop_on_signals
    from cifar_sweep.results.export import known_metrics, read_config, retrain

    trial_config, origin = read_config(config)
    known = known_metrics(config)
    console = _console()
    _, images = _load_data(data or origin["data_source"], console, download=True)
    if images.fingerprint != origin["data_fingerprint"]:
        console.print(f"note: the export was trained on {origin['data']}, this is {images.name}: numbers will differ.")
    source = config if config.is_dir() else config.parent
    folder = out or source.absolute().with_name(source.absolute().name + "-again")
    with stop_on_signals() as stop:
        metrics = retrain(
            folder, trial_config, origin,
            data=images, device=device or origin["device"].split()[0], threads=threads,
            stop=stop, say=_printer(console),
        )  # fmt: skip
    if metrics is None:
        console.print("stopped; nothing was written.")
        raise typer.Exit(stop.exit_code())
    _say_export(folder, metrics, console)
    if known is not None:
        difference = metrics["test_accuracy"] - known["test_accuracy"]
        same = "the same" if difference == 0 else f"{difference:+.2%} against {known['test_accuracy']:.2%}"
        console.print(f"test accuracy compared with the export's: {same}", highlight=False)


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8080,
    storage: StorageUrl = DEFAULT_STORAGE,
) -> None:
    """Serve optuna-dashboard on 127.0.0.1, for reading only, until Ctrl-C."""
    from cifar_sweep.launch.local import stop_on_signals
    from cifar_sweep.results.dashboard import serve
    from cifar_sweep.search.storage import open_existing

    opened = open_existing(storage)
    with stop_on_signals() as stop:
        serve(opened, port=port, stop=stop, on_ready=lambda url: typer.echo(f"dashboard of {opened.shown} on {url}"))


@app.command()
def doctor(
    data: Data = "auto", storage: StorageUrl = DEFAULT_STORAGE, artifacts: Artifacts = DEFAULT_ARTIFACTS
) -> None:
    """Check Python, torch, the device, bf16, the data, the storage and the disk."""
    from rich.table import Table

    from cifar_sweep.results.doctor import examine

    findings = examine(storage=storage, data=data, artifacts=artifacts)
    view = Table.grid(padding=(0, 2))
    for finding in findings:
        view.add_row("ok" if finding.well else "FAULT", finding.subject, finding.found)
    _console().print(view, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(finding.well for finding in findings) else 1)


def _console() -> "Console":
    from rich.console import Console

    # Elsewhere than in a terminal nobody sees 80 columns: a table must not be cut there.
    return Console(width=None if sys.stdout.isatty() else 200)


def _printer(console: "Console") -> "Callable[[str], None]":
    """Prints one line as it is."""
    return lambda line: console.print(line, highlight=False, markup=False)


def _settings(pairs: list[str]) -> dict[str, Value]:
    """The values of `--set key=value`, read as TOML; what is no TOML value is a word."""
    parsed: dict[str, Value] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals and text):
            raise UsageError(f"--set {pair}: a key and a value are needed, as in --set batch_size=32.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        if not isinstance(value, (bool, int, float, str)):
            raise UsageError(f"--set {pair}: a number, a word, true or false is needed.")
        parsed[key.strip()] = value
    return parsed


def _load_data(source: str, console: "Console", *, download: bool) -> "tuple[str, ImageData]":
    """The images, and the source that finds them again; the synthetic ones where nothing may be downloaded."""
    from cifar_sweep.training import data

    if source == "auto" and not download and data.find_on_disk() is None:
        source = "synthetic"
        console.print(
            "CIFAR-10 is not on this disk: this preview runs on synthetic images (--data FOLDER names yours)."
        )
    return source, data.load(source, on_progress=_printer(console))


def _say_start(study: "SweepStudy", jobs: "list[Job]", console: "Console") -> None:
    from cifar_sweep.training.device import device_name, resolve_device, resolve_precision

    device = resolve_device(jobs[0].device)
    precision, ratio = resolve_precision(device)
    asked = study.sweep.fixed.get("precision", "auto")
    chosen = f"auto is {precision} (bf16 is {ratio:.1f} times as fast here)" if asked == "auto" else asked
    workers = f"{len(jobs)} worker(s)" + (f" x {jobs[0].threads} thread(s)" if device.type == "cpu" else "")
    console.print(
        f"study {study.name}: {study.budget} trials on {study.data['name']}\n"
        f"device {device.type}: {device_name(device)}; {workers}; precision {chosen}",
        highlight=False,
    )


def _say_end(study: "SweepStudy", job: "Job", console: "Console") -> None:
    from cifar_sweep.results.status import params_text
    from cifar_sweep.runner import artifact_folder

    summary = study.summary()
    counts, best = summary["trials"], summary["best"]
    finished = counts["complete"] + counts["pruned"]
    lines = [f"{finished} of {study.budget} trials finished: {counts['complete']} complete, {counts['pruned']} pruned"]
    if finished < study.budget:
        lines.append("stopped before the end; the same command goes on from each trial's last epoch")
    if best is not None:
        lines.append(
            f"best: trial {best['number']}, validation accuracy {best['value']:.2%}, {params_text(best['params'])}"
        )
    at = "" if job.storage == DEFAULT_STORAGE else f" --storage {study.storage.shown}"
    kept = "" if job.artifacts == DEFAULT_ARTIFACTS else f" --artifacts {job.artifacts}"
    lines += [
        f"study: {study.storage.shown}, weights: {artifact_folder(job.artifacts, study)}",
        f"next: cifar-sweep export {study.name}{at}{kept}   config, weights and test accuracy",
        f"      cifar-sweep dashboard{at}   every trial, in a browser",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _say_export(folder: Path, metrics: dict[str, Any], console: "Console") -> None:
    console.print(
        f"{folder}: config.toml, weights.safetensors, metrics.json, MODEL_CARD.md\n"
        f"validation accuracy {metrics['validation_accuracy']:.2%}, test accuracy {metrics['test_accuracy']:.2%} "
        f"({metrics['test_images']:,} images)",
        highlight=False,
        soft_wrap=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Ends the process with 0, 1 (a failure), 2 (wrong usage) or 128 + a signal."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app(arguments)
    except CifarSweepError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        known = _storage_fault(error)
        if known is None:
            raise
        _fail(str(known), known.exit_code)


def _storage_fault(error: Exception) -> CifarSweepError | None:
    """A database error in one sentence; the module that knows them is loaded wherever one can happen."""
    if "cifar_sweep.search.storage" not in sys.modules:
        return None
    from cifar_sweep.search.storage import explain

    return explain(error)


def _fail(sentence: str, exit_code: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(exit_code)
