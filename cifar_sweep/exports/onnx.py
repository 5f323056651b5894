"""`model.onnx`: an export for programs that know neither PyTorch nor us, written by PyTorch's own exporter.

What the pixels are normalised with and the softmax are inside of the graph, so that it takes pixels and gives
probabilities. The packages that write it are an extra's, and are loaded when a file is written, not before.
"""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
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
CHECKED = 100  # test images, on which the file must say what the network says
TOLERANCE = 1e-4  # of a probability
ABOUT = (
    "Float32 images [n, 3, 32, 32], RGB from 0 to 1, to probabilities [n, classes]; the names of the classes and where "
    "the network comes from are in the metadata."
)


class OnnxError(CifarSweepError):
    """A network that cannot be written as ONNX, or that would say something else there."""


def missing() -> list[str]:
    """The packages of the extra that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def check_installed() -> None:
    """Raise UsageError where a package of the extra is missing."""
    if missing():
        raise UsageError(f"--onnx: {', '.join(missing())} is not installed; {INSTALL}.")


def add(folder: Path, data: ImageData) -> dict[str, Any]:
    """Write an export's ``model.onnx``, and note it in its ``metrics.json``.

    The file is written if it says of some test images of `data` what the networks say.

    Returns:
        What is noted: the file's SHA-256, and how far its probabilities were from the networks' at most.

    Raises:
        OnnxError: it cannot be written, or says something else.
        CifarSweepError: the export is not whole, or the disk is at fault.
    """
    export = read(folder)
    metrics_file = folder / "metrics.json"
    metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
    classifier = export.classifier()
    model = to_onnx(classifier, metadata=_metadata(export, metrics))
    images = some_images(data)
    difference = largest_difference(model, classifier, images)
    if not difference <= TOLERANCE:
        raise OnnxError(
            f"{folder / NAME} is not written: its probabilities would be {difference:.2g} away from the network's."
        )
    replace_file(folder / NAME, model)
    noted = {
        "file": NAME,
        "sha256": hashlib.sha256(model).hexdigest(),
        "largest_difference": difference,
        "images": len(images),
    }
    replace_file(metrics_file, (json.dumps(metrics | {"onnx": noted}, indent=2) + "\n").encode())
    return noted


def to_onnx(classifier: Classifier, *, metadata: Mapping[str, str]) -> bytes:
    """A classifier on the CPU as an ONNX file, with its weights inside.

    Raises:
        OnnxError: its operations are not ONNX's, or depend on what the pixels are; or the extra's packages are too old.
    """
    with _silence():
        try:
            program = torch.onnx.export(
                classifier,
                (torch.zeros(2, 3, 32, 32),),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: "n"},),
                external_data=False,
                verbose=False,
                dynamo=True,
            )
            assert program is not None
            model = program.model_proto
        except ImportError as error:
            raise OnnxError(f"{NAME} cannot be written: {one_line(error)}; {INSTALL} brings what it needs.") from error
        except Exception as error:  # whatever a network of a user's own may lead the exporter to
            raise OnnxError(f"{NAME} cannot be written: {one_line(error.__cause__ or error)}.") from error
    _forget_the_source(model)
    model.producer_name = "cifar-sweep"
    model.producer_version = __version__
    model.doc_string = ABOUT
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString())


def _forget_the_source(model: Any) -> None:
    """Remove what the exporter notes of each node: lines and paths of the program that it came from."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing is printed, logged or warned of inside: the exporter describes its failures at length."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _metadata(export: Exported, metrics: Mapping[str, Any]) -> dict[str, str]:
    """What metrics.json says of a network, but for its curve; whatever is not a word is JSON.

    Nor when it was exported: the same export is to give the same file.
    """
    left_out = ("curve", "exported", "onnx")
    found = {"classes": export.classes} | {key: value for key, value in metrics.items() if key not in left_out}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def some_images(data: ImageData) -> Tensor:
    """A hundred test images from all over the test set, or all that there are: [n, 3, 32, 32] in [0, 1]."""
    step = max(1, len(data.test_images) // CHECKED)
    return data.test_images[::step][:CHECKED].permute(0, 3, 1, 2).float() / 255


def largest_difference(model: bytes, classifier: Classifier, images: Tensor) -> float:
    """How far any probability of an ONNX file is from the classifier's, for images [n, 3, 32, 32] in [0, 1].

    Raises:
        OnnxError: the file does not run.
    """
    import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]

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
