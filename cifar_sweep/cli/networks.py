"""Trained networks: `export`, `train`, `ensemble`, `evaluate`, `predict`, `model`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifar_sweep.cli.options import (
    Artifacts,
    Device,
    SameData,
    StorageUrl,
    StudyName,
    Threads,
    artifacts_of,
    data_of_export,
    data_of_study,
    printer,
    settings_of,
    terminal,
)
from cifar_sweep.config import DEFAULT_STORAGE
from cifar_sweep.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from cifar_sweep.training.images.data import ImageData

ExportFolder = Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of an export.")]
Out = Annotated[Path | None, typer.Option(help="Folder to write; one named after what is in it if not given.")]
WithOnnx = Annotated[
    bool | None,
    typer.Option(
        "--onnx/--no-onnx",
        envvar="CIFAR_SWEEP_ONNX",
        help="Write model.onnx, too, or do not; where the extra onnx is installed, if not given.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON; accuracies and probabilities are fractions.")]


def export(
    study: StudyName = None,
    trial: Annotated[int | None, typer.Option(min=0, help="Its number; the best complete trial if not given.")] = None,
    out: Out = None,
    with_onnx: WithOnnx = None,
    device: Device = "auto",
    data: SameData = None,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Write a trial's config, weights, metrics, model card and predict.py, with its test accuracy, measured here."""
    from cifar_sweep.exports.trained import pick, trained_trial
    from cifar_sweep.exports.write import write
    from cifar_sweep.study.opening import load
    from cifar_sweep.study.storage import open_existing
    from cifar_sweep.training.device import prepare_process, resolve_device

    _check_onnx(with_onnx)
    the_study = load(open_existing(storage), study)
    chosen = pick(the_study, trial)
    trained = trained_trial(the_study, chosen, artifacts_of(the_study, artifacts))
    on = resolve_device(device)
    console = terminal()
    images = data_of_study(the_study, data, console)
    prepare_process(on, threads=trained.provenance.threads)
    folder = out or Path("exports") / f"{the_study.name}-{chosen.number}"
    metrics = write(folder, [trained], data=images, device=on)
    the_study.record_test([chosen.number], metrics["test_accuracy"])
    _say_export(folder, metrics, console)
    _add_onnx(folder, images, with_onnx, console)


def ensemble(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY | EXPORT...]", help="A study, or export folders.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="So many of the study's best trials, by validation accuracy; 3 of them.")
    ] = None,
    trials: Annotated[str | None, typer.Option(help="These trials of the study instead, as in 3,5,8.")] = None,
    seeds: Annotated[
        int, typer.Option(min=0, help="Train each of them again under so many other seeds; 0 takes their weights.")
    ] = 0,
    out: Out = None,
    with_onnx: WithOnnx = None,
    threads: Threads = 0,
    device: Device = "auto",
    data: SameData = None,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Average the probabilities of several networks, and write them as one export."""
    from cifar_sweep.exports.ensemble import check_size, choose, joined
    from cifar_sweep.exports.exported import is_export, read
    from cifar_sweep.exports.trained import trained_trial
    from cifar_sweep.exports.write import write
    from cifar_sweep.study.opening import load
    from cifar_sweep.study.storage import open_existing
    from cifar_sweep.training.device import prepare_process, resolve_device
    from cifar_sweep.work.retrain import Retraining, discard_unfinished
    from cifar_sweep.work.signals import stop_on_signals

    _check_onnx(with_onnx)
    on = resolve_device(device)
    console = terminal()
    given = sources or []
    numbers = _numbers(trials)
    if any(is_export(Path(source)) for source in given):
        if top is not None or trials is not None:
            raise UsageError("--top and --trials choose among a study's trials; accepted with a study.")
        exports = [read(Path(source)) for source in given]
        members, name = joined(exports), exports[0].folder.name
        images = data_of_export(exports[0], data, console, must_match=True)
    elif len(given) > 1:
        raise UsageError(
            f"{', '.join(given)}: no export folders; accepted: one study, or folders that hold a config.toml."
        )
    else:
        the_study = load(open_existing(storage), given[0] if given else None)
        chosen = choose(the_study, top=top or 3, numbers=numbers)
        store = artifacts_of(the_study, artifacts)
        members, name = [trained_trial(the_study, trial, store) for trial in chosen], the_study.name
        images = data_of_study(the_study, data, console)
    check_size(len(members) * (seeds or 1))
    folder = out or Path("exports") / f"{name}-ensemble"
    if seeds:
        with stop_on_signals() as stop:
            retraining = Retraining(images, device, threads, folder, stop, printer(console))
            copies = retraining.train_copies(members, seeds=seeds)
        if copies is None:
            console.print("stopped; the same command goes on from the last epoch.")
            raise typer.Exit(stop.exit_code())
        members = copies
    prepare_process(on, threads=threads or members[0].provenance.threads)
    metrics = write(folder, members, data=images, device=on)
    discard_unfinished(folder)
    for member in metrics["members"]:
        label = f" ({member['label']})" if member["label"] else ""
        printer(console)(
            f"study {member['study']}, trial {member['trial']}{label}: validation accuracy "
            f"{member['validation_accuracy']:.2%}, test accuracy {member['test_accuracy']:.2%}"
        )
    _say_export(folder, metrics, console)
    _add_onnx(folder, images, with_onnx, console)


def _numbers(trials: str | None) -> list[int]:
    try:
        numbers = [int(word) for word in trials.split(",")] if trials is not None else []
    except ValueError:
        numbers = [0, 0]
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"--trials {trials}: accepted: different trial numbers with commas between them, as in 3,5,8.")
    return numbers


def evaluate(
    export: ExportFolder,
    device: Device = "auto",
    data: SameData = None,
    as_json: AsJson = False,
) -> None:
    """Measure an export on the test set: accuracy, each class's, and the confusion matrix."""
    from cifar_sweep.exports.exported import evaluate_export, read, table
    from cifar_sweep.training.device import prepare_process, resolve_device

    chosen = read(export)
    on = resolve_device(device)
    console = terminal()
    images = data_of_export(chosen, data, console, quiet=as_json)
    prepare_process(on, threads=chosen.origin.threads)
    evaluation = evaluate_export(chosen, images, device=on)
    if as_json:
        typer.echo(json.dumps(evaluation, indent=2))
        return
    console.print(table(evaluation))
    printer(console)(
        f"\n{export}: test accuracy {evaluation['test_accuracy']:.2%} "
        f"({evaluation['test_images']:,} images of {images.name})" + _shortened_words(chosen.shortened)
    )


def predict(
    export: ExportFolder,
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Image files of any size.")] = None,
    against: Annotated[Path | None, typer.Option(help="Another export, side by side on the same images.")] = None,
    test: Annotated[int, typer.Option(min=0, help="So many images of the test set besides.")] = 0,
    page: Annotated[Path | None, typer.Option(help="HTML file to write, with the pictures.")] = None,
    data: SameData = None,
    as_json: AsJson = False,
) -> None:
    """Say what pictures show. Each is resized as a whole to 32x32."""
    from cifar_sweep.exports import pictures as looks
    from cifar_sweep.exports.exported import read

    console = terminal()
    exports = {str(path): read(path) for path in (export, against) if path is not None}
    if against is not None and len(exports) == 1:
        raise UsageError(f"--against {against}: that is the same export; accepted: another one.")
    pictures = [looks.read_picture(path) for path in images or []]
    if test:
        pictures += looks.some_of_test(data_of_export(exports[str(export)], data, console, quiet=as_json), test)
    if not pictures:
        raise UsageError("predict: give image files, or --test N for images of the test set.")
    said = looks.predictions(exports, pictures)
    if page is not None:
        looks.write_page(page, pictures, said)
    if as_json:
        typer.echo(json.dumps(looks.as_json(pictures, said), indent=2))
        return
    console.print(looks.table(pictures, said), soft_wrap=True)
    for name, each in exports.items():
        if each.shortened:
            printer(console)(name + _shortened_words(each.shortened))
    if page is not None:
        printer(console)(f"written: {page}")


def train(
    config: Annotated[Path, typer.Argument(help="The config.toml of an export, or its folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; the export's, with -again, if not given.")] = None,
    with_onnx: WithOnnx = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes the export's number.")] = 0,
    device: Annotated[str | None, typer.Option(help="As in `run`; the export's kind if not given.")] = None,
    data: SameData = None,
) -> None:
    """Train an exported config again, from its first epoch, and write it as an export of its own."""
    from cifar_sweep.exports.exported import known_test_accuracy, read
    from cifar_sweep.exports.write import write
    from cifar_sweep.training.device import resolve_device
    from cifar_sweep.work.retrain import Retraining, discard_unfinished
    from cifar_sweep.work.signals import stop_on_signals

    _check_onnx(with_onnx)
    export = read(config)
    console = terminal()
    images = data_of_export(export, data, console)
    source = export.folder.absolute()
    folder = out or source.with_name(source.name + "-again")
    kind = device or export.origin.device.split()[0]
    with stop_on_signals() as stop:
        retraining = Retraining(images, kind, threads, folder, stop, printer(console))
        trained = []
        for member in export.members:
            done = retraining.train(member.config, member.origin)
            if done is None:
                console.print("stopped; the same command goes on from the last epoch.")
                raise typer.Exit(stop.exit_code())
            trained.append(done)
    on = resolve_device(kind)
    metrics = write(folder, trained, data=images, device=on)
    discard_unfinished(folder)
    _say_export(folder, metrics, console)
    known = known_test_accuracy(export.folder)
    if known is not None:
        difference = metrics["test_accuracy"] - known
        same = "the same" if difference == 0 else f"{difference:+.2%} against {known:.2%}"
        printer(console)(f"test accuracy compared with the export's: {same}")
    _add_onnx(folder, images, with_onnx, console)


def model(
    name: Annotated[str | None, typer.Argument(help="A network; all of them at a glance if not given.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in --set hidden_units=4000.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show a network's layers with their output shapes and parameter counts."""
    from cifar_sweep.terminal import model as models

    if name is None:
        if settings:
            raise UsageError("--set: name the network that it changes, as in `cifar-sweep model vgg13 --set ...`.")
        overview = models.overview()
        if as_json:
            typer.echo(json.dumps({"models": overview}, indent=2))
        else:
            terminal().print(models.overview_table(overview))
        return
    described = models.describe_model({"model": name} | settings_of(settings or []))
    if as_json:
        typer.echo(json.dumps(described, indent=2))
    else:
        terminal().print(models.table(described))


def _say_export(folder: Path, metrics: dict[str, Any], console: "Console") -> None:
    cut = {part["shortened"] for part in metrics.get("members", [metrics])} - {""}
    printer(console)(
        f"{folder}: config.toml, weights.safetensors, metrics.json, MODEL_CARD.md, predict.py\n"
        f"validation accuracy {metrics['validation_accuracy']:.2%}, test accuracy {metrics['test_accuracy']:.2%} "
        f"({metrics['test_images']:,} images)" + _shortened_words("; ".join(sorted(cut)))
    )


def _check_onnx(wished: bool | None) -> None:
    """Refuse a wish for ONNX that cannot be met before anything is measured."""
    if wished:
        from cifar_sweep.exports.onnx import check_installed

        check_installed()


def _add_onnx(folder: Path, images: "ImageData", wished: bool | None, console: "Console") -> None:
    """Write an export's model.onnx, if that is wished for, or can be and nothing was said; say what came of it."""
    from cifar_sweep.exports import onnx

    if wished is False:
        return
    if wished is None and onnx.missing():
        printer(console)(f"{onnx.NAME} is not written: {onnx.INSTALL} brings what it needs")
        return
    try:
        noted = onnx.add(folder, images)
    except onnx.OnnxError as error:
        if wished:
            raise
        printer(console)(str(error))
        return
    printer(console)(
        f"{folder / onnx.NAME}: the same probabilities on {noted['images']} test images, "
        f"to {noted['largest_difference']:.1g}"
    )


def _shortened_words(shortened: str) -> str:
    return f"; shortened: {shortened}" if shortened else ""
