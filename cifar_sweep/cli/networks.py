"""Trained networks: `export`, `train`, `ensemble`, `evaluate`, `predict`, `model`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer import Argument, Option

from cifar_sweep.cli import rooms
from cifar_sweep.cli.bundles import ImageOptions
from cifar_sweep.cli.options import Device, SameData, StudyName, Threads, echo_json, say, say_of, settings_of, terminal
from cifar_sweep.errors import UsageError
from cifar_sweep.work.signals import StopRequest, stop_on_signals

if TYPE_CHECKING:
    import torch

ExportFolder = Annotated[Path, Argument(metavar="EXPORT", help="Folder of an export.")]
AsJson = Annotated[bool, Option("--json", help="As JSON; accuracies and probabilities are fractions.")]
SOURCES = Argument(metavar="[STUDY | EXPORT...]", help="A study, or export folders.")
OUT = "Folder to write; one named after what is in it if not given."
HALF = "Weights and model.onnx in half precision (float16): files of half the size."
CHANGED = "Train with this instead, as in epochs=100."
ONNX = "Write model.onnx, too, or do not; where the extra onnx is installed, if not given."


@dataclass(frozen=True)
class OutputOptions:
    """Where an export is written, and what is in it: of `export`, `ensemble` and `train`."""

    out: Annotated[Path | None, Option(help=OUT)] = None
    with_onnx: Annotated[bool | None, Option("--onnx/--no-onnx", envvar="CIFAR_SWEEP_ONNX", help=ONNX)] = None

    half: Annotated[bool, Option("--half", help=HALF)] = False

    def __post_init__(self) -> None:
        if self.with_onnx:  # a wish that cannot be met is refused before anything is measured
            rooms.onnx.check_installed()


def export(
    study: StudyName = None,
    trial: Annotated[int | None, Option(min=0, help="Its number; the best complete trial if not given.")] = None,
    *,
    output: OutputOptions,
    options: ImageOptions,
) -> None:
    """Write a trial's config, weights, metrics, model card and predict.py, with its test accuracy, measured here."""
    source = options.load(study)
    chosen = rooms.trained.pick(source, trial)
    trained = rooms.trained.trained_trial(source, chosen, options.files_of(source))
    if why := rooms.verdict.verdict(source, source.trials()):
        say(f"note: this is no best one: {why}")
    on = rooms.device.resolve_device(options.device)
    images = options.images_of(source)
    rooms.device.prepare_process(on, threads=trained.provenance.threads)
    folder = output.out or Path("exports") / f"{source.name}-{chosen.number}"
    metrics = _write(folder, [trained], images, on, output)
    if not output.half:  # the study's is that of the weights it keeps
        source.record_test([chosen.number], metrics["test_accuracy"])
    _add_onnx(folder, images, output.with_onnx)


def ensemble(
    sources: Annotated[list[str] | None, SOURCES] = None,
    top: Annotated[int | None, Option(min=1, help="So many of the study's best trials; 3 if not given.")] = None,
    trials: Annotated[str | None, Option(help="These trials of the study instead, as in 3,5,8.")] = None,
    seeds: Annotated[int, Option(min=0, help="Train each again under so many other seeds; 0 takes its weights.")] = 0,
    threads: Threads = 0,
    *,
    output: OutputOptions,
    options: ImageOptions,
) -> None:
    """Average the probabilities of several networks, and write them as one export."""
    on = rooms.device.resolve_device(options.device)
    members, name, images = _members(sources or [], top, trials, options)
    if (count := len(members) * (seeds or 1)) < 2:
        raise UsageError(f"an ensemble of {count}: accepted: from 2 members, by --top, --trials or --seeds.")
    folder = output.out or Path("exports") / f"{name}-ensemble"
    if seeds:
        with stop_on_signals() as stop:
            retraining = rooms.retrain.Retraining(images, options.device, threads, folder, stop, say)
            copies = retraining.train_copies(members, seeds=seeds)
        members = copies or _stopped(stop)
    rooms.device.prepare_process(on, threads=threads or members[0].provenance.threads)
    _write(folder, members, images, on, output, each=True)
    rooms.retrain.discard_unfinished(folder)
    _add_onnx(folder, images, output.with_onnx)


def _members(
    sources: list[str], top: int | None, trials: str | None, options: ImageOptions
) -> "tuple[list[rooms.trained.Trained], str, rooms.data.ImageData]":
    """The networks of an ensemble, the name of what they are from, and their images."""
    numbers = _numbers(trials)
    if any(rooms.exported.is_export(Path(source)) for source in sources):
        if top is not None or trials is not None:
            raise UsageError("--top and --trials choose among a study's trials; accepted with a study.")
        exports = [rooms.exported.read(Path(source)) for source in sources]
        members = rooms.exported.joined(exports)
        return members, exports[0].folder.name, _images_of(exports[0], options.data, must_match=True)
    if len(sources) > 1:
        given = ", ".join(sources)
        raise UsageError(f"{given}: no export folders; accepted: one study, or folders that hold a config.toml.")
    study = options.load(sources[0] if sources else None)
    chosen = rooms.trained.choose(study, top=top or 3, numbers=numbers)
    files = options.files_of(study)
    return [rooms.trained.trained_trial(study, trial, files) for trial in chosen], study.name, options.images_of(study)


def _numbers(trials: str | None) -> list[int]:
    try:
        numbers = [int(word) for word in trials.split(",")] if trials is not None else []
    except ValueError:
        numbers = [0, 0]
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"--trials {trials}: accepted: different trial numbers with commas between them, as in 3,5,8.")
    return numbers


def evaluate(export: ExportFolder, device: Device = "auto", data: SameData = None, as_json: AsJson = False) -> None:
    """Measure an export on the test set: accuracy, each class's, and the confusion matrix."""
    chosen = rooms.exported.read(export)
    on = rooms.device.resolve_device(device)
    images = _images_of(chosen, data, quiet=as_json)
    rooms.device.prepare_process(on, threads=chosen.origin.threads)
    evaluation = rooms.exported.evaluate_export(chosen, images, device=on)
    if as_json:
        echo_json(evaluation)
        return
    for view in rooms.exported.tables(evaluation):
        terminal().print(view)
    measured = f"{evaluation['test_accuracy']:.2%} ({evaluation['test_images']:,} images of {images.name})"
    say(f"\n{export}: test accuracy {measured}" + (f"; shortened: {chosen.shortened}" if chosen.shortened else ""))


def predict(
    export: ExportFolder,
    images: Annotated[list[Path] | None, Argument(metavar="[IMAGE]...", help="Image files of any size.")] = None,
    against: Annotated[Path | None, Option(help="Another export, side by side on the same images.")] = None,
    test: Annotated[int, Option(min=0, help="So many images of the test set besides.")] = 0,
    page: Annotated[Path | None, Option(help="HTML file to write, with the pictures.")] = None,
    data: SameData = None,
    as_json: AsJson = False,
) -> None:
    """Say what pictures show. Each is resized as a whole to the size of the training's."""
    exports = {str(path): rooms.exported.read(path) for path in (export, against) if path is not None}
    if against is not None and len(exports) == 1:
        raise UsageError(f"--against {against}: that is the same export; accepted: another one.")
    chosen = exports[str(export)]
    if other := next((name for name, each in exports.items() if each.image_size != chosen.image_size), None):
        raise UsageError(f"--against {other}: it takes images of another size than {export}; accepted: the same size.")
    pictures = [rooms.pictures.read_picture(path, chosen.image_size) for path in images or []]
    if test:
        pictures += rooms.pictures.some_of_test(_images_of(chosen, data, quiet=as_json), test)
    if not pictures:
        raise UsageError("predict: give image files, or --test N for images of the test set.")
    said = rooms.pictures.predictions(exports, pictures)
    if page is not None:
        rooms.pictures.write_page(page, pictures, said)
    if as_json:
        echo_json(rooms.pictures.as_json(pictures, said))
        return
    terminal().print(rooms.pictures.table(pictures, said), soft_wrap=True)
    for name, each in exports.items():
        if each.shortened:
            say(f"{name}; shortened: {each.shortened}")
    if page is not None:
        say(f"written: {page}")


def train(
    config: Annotated[Path, Argument(help="The config.toml of an export, or its folder.")],
    threads: Annotated[int, Option(min=0, help="CPU threads; 0 takes the export's number.")] = 0,
    device: Annotated[str | None, Option(help="As in `run`; the export's kind if not given.")] = None,
    data: SameData = None,
    settings: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help=CHANGED)] = None,
    *,
    output: OutputOptions,
) -> None:
    """Train an exported config again, from its first epoch, and write it as an export of its own, EXPORT-again."""
    export = rooms.exported.read(config)
    changes = settings_of(settings or [])
    configs = [rooms.retrain.changed(member.config, changes) for member in export.members]
    images = _images_of(export, data)
    source = export.folder.absolute()
    folder = output.out or source.with_name(source.name + "-again")
    kind = device or export.origin.device.split()[0]
    with stop_on_signals() as stop:
        retraining = rooms.retrain.Retraining(images, kind, threads, folder, stop, say)
        trained = [
            retraining.train(config, member.origin) or _stopped(stop)
            for config, member in zip(configs, export.members, strict=True)
        ]
    metrics = _write(folder, trained, images, rooms.device.resolve_device(kind), output)
    rooms.retrain.discard_unfinished(folder)
    if (known := rooms.exported.known_test_accuracy(export.folder)) is not None:
        difference = metrics["test_accuracy"] - known
        same = "the same" if difference == 0 else f"{difference:+.2%} against {known:.2%}"
        if any(each.provenance.changed for each in trained):
            same += "; settings were changed: it is another run than the export's"
        say(f"test accuracy compared with the export's: {same}")
    _add_onnx(folder, images, output.with_onnx)


def model(
    name: Annotated[str | None, Argument(help="A network; all of them at a glance if not given.")] = None,
    settings: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="As in hidden_units=4000.")] = None,
    as_json: Annotated[bool, Option("--json", help="As JSON.")] = False,
) -> None:
    """Show a network's layers with their output shapes and parameter counts."""
    if name is None and settings:
        raise UsageError("--set: name the network that it changes, as in `cifar-sweep model vgg13 --set ...`.")
    if name is None:
        described, table = {"models": rooms.model.overview()}, rooms.model.overview_table
    else:
        described, table = rooms.model.describe_model({"model": name} | settings_of(settings or [])), rooms.model.table
    if as_json:
        echo_json(described)
    else:
        terminal().print(table(described))


def _images_of(
    export: "rooms.exported.Exported", source: str | None, *, must_match: bool = False, quiet: bool = False
) -> "rooms.data.ImageData":
    """The images that an export was trained on: from `source`, else those that the cache has, or from where they were.

    Other images of the same classes are only remarked on, unless they `must_match`; not even that where `quiet`.
    Nothing is downloaded unless `source` says what.
    """
    origin = export.origin
    images = None if source else rooms.data.find_decoded(origin.data_fingerprint)
    if images is None:
        if source is None and origin.data_source == "auto" and origin.data != "CIFAR-10":
            raise UsageError(f"{export.folder}: trained on {origin.data}; name it with --data.")
        was = origin.data_source, origin.data_fingerprint
        how: dict[str, Any] = {"side": export.image_size, "skip_damaged": True, "may_download": source is not None}
        images = rooms.data.load_again(source, *was, on_progress=None if quiet else say, **how)
    if images.fingerprint == origin.data_fingerprint:
        return images
    if must_match or [*images.classes] != origin.classes:
        others = [name for name in images.classes if name not in origin.classes]
        differing = f", such as {others[0]!r}" if others else ""
        raise UsageError(
            f"{export.folder}: trained on {origin.data} ({len(origin.classes)} classes), not on {images.name} "
            f"({len(images.classes)} classes{differing}); name its data with --data."
        )
    if not quiet:
        say(f"note: the export was trained on {origin.data}, this is {images.name}: numbers will differ.")
    return images


def _stopped(stop: StopRequest) -> NoReturn:
    say("stopped; the same command goes on from the last epoch.")
    raise typer.Exit(stop.exit_code())


def _write(
    folder: Path,
    trained: "Sequence[rooms.trained.Trained]",
    images: "rooms.data.ImageData",
    device: "torch.device",
    output: OutputOptions,
    *,
    each: bool = False,
) -> dict[str, Any]:
    metrics = rooms.write.write(folder, trained, data=images, device=device, half=output.half)
    cut = {part["shortened"] for part in metrics.get("members", [metrics])} - {""}
    members, shortened = metrics["members"] if each else [], "; ".join(sorted(cut))
    say_of("export", folder=folder, metrics=metrics, members=members, shortened=shortened)
    return metrics


def _add_onnx(folder: Path, images: "rooms.data.ImageData", wished: bool | None) -> None:
    """Write an export's model.onnx, if that is wished for, or can be and nothing was said; say what came of it."""
    if wished is False:
        return
    if wished is None and rooms.onnx.missing():
        say(f"{rooms.onnx.NAME} is not written: {rooms.onnx.INSTALL} brings what it needs")
        return
    try:
        noted = rooms.onnx.add(folder, images)
    except rooms.onnx.OnnxError as error:
        if wished:
            raise
        say(str(error))
        return
    same = f"the same probabilities on {noted['images']} test images, to {noted['largest_difference']:.1g}"
    say(f"{folder / rooms.onnx.NAME}: {same}")
