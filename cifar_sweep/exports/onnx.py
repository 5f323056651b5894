"""`model.onnx`: an export for programs without PyTorch and without this package, written by PyTorch's own exporter.

The graph takes pixels and gives probabilities: it normalises the pixels, and has the softmax. The packages that write
it belong to an extra, and are loaded when a file is written, not before.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_sweep.errors import CifarSweepError, UsageError, one_line
from cifar_sweep.exports.classifier import Classifier
from cifar_sweep.exports.exported import Exported, read
from cifar_sweep.files import replace_file
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.version import __version__

NAME = "model.onnx"
NEEDED = ("onnx", "onnxruntime", "onnxscript")
INSTALL = "`pip install 'cifar-sweep[onnx]'`"
CHECKED = 100  # test images for which the file must give the network's probabilities
# As old as the exporter writes, for the reach: onnxruntime knows them from 1.14, and it was run with 1.15.
OPSET, IR_VERSION = 18, 8
TOLERANCE = 1e-4  # of a probability: the last digit that predict.py prints
HALF_TOLERANCE = 0.05  # of a file in half precision: eleven bits for each number, and many of them in a row
ABOUT = (
    "Float32 images [n, 3, {side}, {side}], RGB from 0 to 1, to probabilities [n, classes]; the names of the classes "
    "and where the network comes from are in the metadata."
)


class OnnxError(CifarSweepError):
    """A network cannot be written as ONNX, or its file gives other probabilities."""


def missing() -> list[str]:
    """The packages of the extra that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def check_installed() -> None:
    """Raise UsageError where a package of the extra is missing."""
    if missing():
        raise UsageError(f"--onnx: {', '.join(missing())} is not installed; {INSTALL}.")


def add(folder: Path, data: ImageData) -> dict[str, Any]:
    """Write an export's ``model.onnx``, and note it in ``metrics.json``. Returns what is noted.

    The file is in half precision where the weights are. Raises OnnxError where it cannot be made, or does not give the
    networks' probabilities for some test images of `data`; CifarSweepError where the export is not whole.
    """
    export = read(folder)
    metrics_file = folder / "metrics.json"
    metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
    classifier = export.classifier()
    half = "half" in metrics
    model = to_onnx(deepcopy(classifier).half() if half else classifier, metadata=_metadata(export, metrics))
    images = some_images(data)
    difference = largest_difference(model, classifier, images)
    if not difference <= (HALF_TOLERANCE if half else TOLERANCE):
        away = f"its probabilities would be {difference:.2g} away from the network's"
        raise OnnxError(f"{folder / NAME} is not written: {away}.")
    replace_file(folder / NAME, model)
    digest = hashlib.sha256(model).hexdigest()
    noted = {"file": NAME, "sha256": digest, "largest_difference": difference, "images": len(images)}
    replace_file(metrics_file, json.dumps(metrics | {"onnx": noted}, indent=2) + "\n")
    return noted


def to_onnx(classifier: Classifier, *, metadata: Mapping[str, str]) -> bytes:
    """A classifier on the CPU as an ONNX file, with its weights inside. Raises OnnxError where ONNX cannot say it."""
    side = classifier.configs[0].shape.image_size
    with _silence():
        try:
            program = torch.onnx.export(
                classifier,
                (torch.zeros(2, 3, side, side),),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: "n"},),
                external_data=False,
                verbose=False,
                dynamo=True,
                opset_version=OPSET,
            )
            assert program is not None
            model = program.model_proto
        except ImportError as error:
            raise OnnxError(f"{NAME} cannot be written: {one_line(error)}; {INSTALL} brings what it needs.") from error
        except Exception as error:  # a user's own network may lead the exporter to any error
            raise OnnxError(f"{NAME} cannot be written: {one_line(error.__cause__ or error)}.") from error
    _forget_the_source(model)
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.producer_name = "cifar-sweep"
    model.producer_version = __version__
    model.doc_string = ABOUT.format(side=side)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString())


def _forget_the_source(model: Any) -> None:
    """Remove the exporter's notes on each node: lines and paths of the program that wrote the file."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter from printing, logging and warning: it describes its failures at length."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _metadata(export: Exported, metrics: Mapping[str, Any]) -> dict[str, str]:
    """The metrics without the curve; all that is no text is JSON.

    The time of the export is left out, too: the same export gives the same file.
    """
    left_out = ("curve", "exported", "onnx")
    kept = {"classes": export.origin.classes} | {key: value for key, value in metrics.items() if key not in left_out}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in kept.items()}
    return {key: text.encode(errors="backslashreplace").decode() for key, text in texts.items()}


def some_images(data: ImageData) -> Tensor:
    """A hundred images from all over the test set, or all where it has fewer: [n, 3, side, side] in [0, 1]."""
    step = max(1, len(data.test_images) // CHECKED)
    return data.test_images[::step][:CHECKED].permute(0, 3, 1, 2).float() / 255


def largest_difference(model: bytes, classifier: Classifier, images: Tensor) -> float:
    """How far a probability of an ONNX file is at most from the classifier's, on images [n, 3, h, w] in [0, 1]."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # without a home folder it also writes to the terminal
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        [found] = session.run(["probabilities"], {"images": images.contiguous().numpy()})
    except Exception as error:  # the runtime's errors have no common kind
        raise OnnxError(f"{NAME} does not run: {one_line(error)}.") from error
    with torch.no_grad():
        return float((torch.from_numpy(found) - classifier(images)).abs().max())
