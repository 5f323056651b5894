"""`model.onnx` says what the network says, to programs that know neither us nor PyTorch."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import load_from_string
from torch import nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.exports import exported, onnx, write
from cifar_sweep.exports.classifier import Classifier
from cifar_sweep.exports.trained import Provenance, Trained
from cifar_sweep.exports.write import LARGEST_LOSS
from cifar_sweep.parameters import Value
from cifar_sweep.study.opening import load
from cifar_sweep.study.storage import open_existing
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build

RUN = ("run", "tiny.toml", "--data", "synthetic:500", "--workers", 1, "--threads", 1, "--trials", 2)
CLASSIFY = (
    "import torch; from predict import classify; a = classify(torch.rand(2, 3, 32, 32)); print(a.dtype, a.shape[1])"
)
LENET: dict[str, Value] = {"model": "lenet", "activation": "tanh"}
CONVNET: dict[str, Value] = {"model": "convnet", "softmax": True, "padding_mode": "reflect", "normalize": True}
CNN3: dict[str, Value] = {
    "model": "cnn3",
    "batch_norm": True,
    "norm_position": "after_activation",
    "dropout": 0.3,
    "activation": "leaky_relu",
    "normalize": True,
}
NETWORKS: dict[str, list[dict[str, Value]]] = {
    "lenet": [LENET],
    "convnet": [CONVNET],
    "cnn3": [CNN3],
    "sigmoid": [{"model": "lenet", "activation": "sigmoid"}],
    "vgg11": [{"model": "vgg11", "hidden_units": 20, "batch_norm": True, "normalize": True}],
    "cnn": [
        {
            "model": "cnn",
            "filters": "4,6",
            "stride_2": 2,
            "pooling": "avg",
            "pool_size_1": 3,
            "batch_norm_2": True,
            "activation": "mish",
            "dense_activation": "selu",
            "dense_layers": 2,
            "dense_batch_norm": True,
            "input_dropout": 0.1,
            "conv_dropout": 0.2,
            "padding": "valid",
        }
    ],
    "smaller images": [{"model": "cnn", "conv_layers": 2, "input_size": 16}, {"model": "convnet", "input_size": 16}],
    "no convolution": [{"model": "cnn", "conv_layers": 0, "dense_units": "9,8"}],
    "ensemble": [LENET, CONVNET, CNN3],
}


def as_if_trained(params: Mapping[str, Value], data: ImageData) -> tuple[TrialConfig, dict[str, torch.Tensor]]:
    """A config, and weights of its network that make it sure of itself: at first, all its probabilities are alike."""
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=1)
    network = build(config.shape, seed=1).train()
    images = data.train_images[:32].permute(0, 3, 1, 2) / 255
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for layer in layers:
            found: list[torch.Tensor] = []
            hook = layer.register_forward_hook(lambda layer, given, output, found=found: found.append(output))
            network(images)
            hook.remove()
            [channels] = [output.movedim(1, -1).flatten(0, -2) for output in found]
            factors = (6 if layer is layers[-1] else 1) / channels.std(dim=0)
            layer.weight *= factors.view(-1, *[1] * (layer.weight.ndim - 1))
            if layer.bias is not None:
                layer.bias.copy_((layer.bias - channels.mean(dim=0)) * factors)
        for _ in range(5):
            network(images)  # batch norm's statistics
    return config, network.state_dict()


def classifier_of(networks: list[dict[str, Value]], data: ImageData) -> Classifier:
    provenance = Provenance(
        study="a study", trial=0, best_epoch=1, validation_accuracy=0.1, data_source="auto", device="cpu", threads=1,
        commit="", versions={}, params={},
    )  # fmt: skip
    members = [Trained(*as_if_trained(params, data), provenance) for params in networks]
    return Classifier(members, mean=data.channel_mean, std=data.channel_std)


def pixels(data: ImageData) -> torch.Tensor:
    return (data.test_images.permute(0, 3, 1, 2) / 255).contiguous()


@pytest.mark.parametrize("networks", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.slow
def test_it_says_what_the_networks_say(
    networks: list[dict[str, Value]], small_data: ImageData, capfd: pytest.CaptureFixture[str]
) -> None:
    classifier, images = classifier_of(networks, small_data), pixels(small_data)
    model = onnx.to_onnx(classifier, metadata={})
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("images", ["n", 3, 32, 32])]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("probabilities", ["n", 10])]
    with torch.no_grad():
        right = classifier(images)
        alone = classifier.by_member(images)
    assert alone.max(dim=2).values.mean() > 0.6
    assert len(right.argmax(dim=1).unique()) > 2
    for count in (1, 7, 100):
        found = torch.from_numpy(session.run(None, {"images": images[:count].numpy()})[0])
        assert torch.allclose(found, right[:count], atol=1e-4, rtol=0)
    assert onnx.largest_difference(model, classifier, images) <= 1e-4
    assert capfd.readouterr() == ("", "")
    # OpenCV 4 gets batches of several images wrong behind such layers, and says nothing.
    graph = load_from_string(model)
    assert not {"Unsqueeze", "Concat", "ReduceMean"} & {node.op_type for node in graph.graph.node}
    assert (graph.ir_version, [each.version for each in graph.opset_import if not each.domain]) == (8, [18])
    # Weights once, and little else.
    weights = sum(4 * value.numel() for value in classifier.state_dict().values())
    assert len(model) < weights + 15_000


@pytest.mark.slow
def test_a_network_by_name_says_the_same(small_data: ImageData, tmp_path: Path) -> None:
    """With its first weights; and so does the script of its export."""
    params: dict[str, Value] = {"model": "torchvision:shufflenet_v2_x0_5", "normalize": True}
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=1)
    provenance = Provenance(
        study="a study", trial=0, best_epoch=1, validation_accuracy=0.1, data_source="auto", device="cpu", threads=1,
        commit="", versions={}, params={},
    )  # fmt: skip
    trained = Trained(config, build(config.shape, seed=1).state_dict(), provenance)
    classifier = Classifier([trained], mean=small_data.channel_mean, std=small_data.channel_std)
    images = pixels(small_data)
    model = onnx.to_onnx(classifier, metadata={})
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        right = classifier.eval()(images)
    assert torch.allclose(torch.from_numpy(found), right, atol=1e-5, rtol=0)
    write.write(tmp_path, [trained], data=small_data, device=torch.device("cpu"))
    code = "import torch; from predict import classify; print(classify(torch.load('i.pt'))[:, 0].tolist())"
    torch.save(images[:3], tmp_path / "i.pt")
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == pytest.approx(right[:3, 0].tolist(), abs=1e-6)


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
@pytest.mark.parametrize("networks", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.slow
def test_opencv_says_the_same(networks: list[dict[str, Value]], half: bool, small_data: ImageData) -> None:
    opencv = pytest.importorskip("cv2")
    classifier, images = classifier_of(networks, small_data), pixels(small_data)
    with torch.no_grad():
        right = classifier(images)
    model = onnx.to_onnx(classifier.half() if half else classifier, metadata={})
    for count in (1, 7, 64):
        network = opencv.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
        network.setInput(images[:count].numpy())
        found = torch.from_numpy(network.forward())
        assert found.shape == (count, 10)
        assert (found - right[:count]).abs().max() < (onnx.HALF_TOLERANCE if half else onnx.TOLERANCE)


@pytest.mark.parametrize("networks", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.slow
def test_in_half_precision_it_is_half_as_large_and_nearly_the_same(
    networks: list[dict[str, Value]], small_data: ImageData
) -> None:
    classifier, images = classifier_of(networks, small_data), pixels(small_data)
    whole = onnx.to_onnx(classifier, metadata={})
    half = onnx.to_onnx(deepcopy(classifier).half(), metadata={})
    assert len(half) < 0.52 * len(whole)
    assert 1e-5 < onnx.largest_difference(half, classifier, images) < onnx.HALF_TOLERANCE
    session = onnxruntime.InferenceSession(half, providers=["CPUExecutionProvider"])
    assert [each.type for each in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2


def test_a_difference_is_measured(small_data: ImageData) -> None:
    model = onnx.to_onnx(classifier_of([LENET], small_data), metadata={})
    other = classifier_of([LENET | {"activation": "relu"}], small_data)
    assert onnx.largest_difference(model, other, pixels(small_data)) > 0.5


def test_a_file_that_does_not_run(small_data: ImageData, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(onnx.OnnxError, match=r"model\.onnx does not run"):
        onnx.largest_difference(b"no model", classifier_of([LENET], small_data), pixels(small_data))
    assert capfd.readouterr() == ("", "")


class Reader(nn.Module):
    """What it does depends on what the pixels are."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images if images.sum() > 0 else -images).flatten(1)[:, :10]


class Fixed(nn.Module):
    """It takes so many images, and no others."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.view(2, 3072)[:, :10]


@pytest.mark.parametrize("network", [Reader(), Fixed()], ids=["data-dependent", "of one size"])
@pytest.mark.slow
def test_a_network_that_has_no_graph(
    network: nn.Module, small_data: ImageData, capfd: pytest.CaptureFixture[str]
) -> None:
    network.configs = classifier_of([LENET], small_data).configs
    with pytest.raises(onnx.OnnxError) as refused:
        onnx.to_onnx(network, metadata={})
    assert str(refused.value).startswith("model.onnx cannot be written: ")
    assert len(str(refused.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def study(tiny_sweep: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("CIFAR_SWEEP_ONNX")
    assert cli(*RUN).exit_code == 0
    return "tiny"


def session_of(folder: str) -> Any:
    return onnxruntime.InferenceSession(Path(folder, onnx.NAME), providers=["CPUExecutionProvider"])


def metrics_of(folder: str) -> dict[str, Any]:
    return dict(json.loads(Path(folder, "metrics.json").read_text()))


@pytest.mark.slow
def test_an_export_has_it_with_what_it_comes_from(study: str, small_data: ImageData, cli: Any) -> None:
    finished = cli("export", study, "--out", "one")
    assert finished.exit_code == 0, finished.err
    assert "one/model.onnx: the same probabilities on 100 test images, to " in finished.out
    metrics, session = metrics_of("one"), session_of("one")
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == list(small_data.classes)
    assert json.loads(said["test_accuracy"]) == metrics["test_accuracy"]
    assert (said["study"], said["trial"]) == ("tiny", str(metrics["trial"]))
    assert "curve" not in said
    found = torch.from_numpy(session.run(None, {"images": pixels(small_data).numpy()})[0])
    assert (found.argmax(dim=1) == small_data.test_labels).double().mean() == metrics["test_accuracy"]
    content = Path("one/model.onnx").read_bytes()
    assert metrics["onnx"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert metrics["onnx"]["images"] == 100
    # The exporter would note where the program lies that wrote it.
    assert b".py" not in content
    again = cli("export", study, "--out", "again", "--onnx")
    assert again.exit_code == 0
    assert Path("again/model.onnx").read_bytes() == content


@pytest.mark.slow
def test_an_ensemble_and_a_training_have_it_too(study: str, small_data: ImageData, cli: Any) -> None:
    assert cli("ensemble", study, "--top", 2, "--out", "both").exit_code == 0
    classifier = exported.read(Path("both")).classifier()
    model = Path("both/model.onnx").read_bytes()
    assert onnx.largest_difference(model, classifier, pixels(small_data)) <= 1e-4
    said = session_of("both").get_modelmeta().custom_metadata_map
    assert {member["trial"] for member in json.loads(said["members"])} == {0, 1}
    finished = cli("train", "both", "--out", "again")
    assert finished.exit_code == 0, finished.err
    assert onnx.largest_difference(Path("again/model.onnx").read_bytes(), classifier, pixels(small_data)) <= 1e-4


@pytest.mark.slow
def test_an_export_in_half_precision(study: str, small_data: ImageData, cli: Any) -> None:
    half = cli("export", study, "--out", "half", "--half")
    assert half.exit_code == 0, half.err
    with closing(open_existing("sqlite:///studies.db")) as storage:
        assert load(storage, study).test_accuracy([metrics_of("half")["trial"]]) is None
    whole = cli("export", study, "--out", "whole")
    assert "weights in half precision: validation accuracy " in half.out
    for name in ("weights.safetensors", onnx.NAME):
        assert Path("half", name).stat().st_size < 0.55 * Path("whole", name).stat().st_size
    of_whole, of_half = metrics_of("whole"), metrics_of("half")
    told = of_half["half"]
    assert told["validation_accuracy_float32"] - told["validation_accuracy"] <= LARGEST_LOSS
    assert "half" not in of_whole
    assert "| weights | float16; validation accuracy" in Path("half/MODEL_CARD.md").read_text()
    # Everybody who reads it computes in float32 with the rounded weights, of which the test accuracy is.
    evaluated = json.loads(cli("evaluate", "half", "--data", "synthetic:500", "--json").out)
    assert evaluated["test_accuracy"] == of_half["test_accuracy"]
    script = subprocess.run([sys.executable, "-c", CLASSIFY], cwd="half", capture_output=True, text=True)
    assert script.stdout.split() == ["torch.float32", "10"], script.stderr
    joined = cli("ensemble", "whole", "half", "--data", "synthetic:500", "--out", "both", "--half")
    assert joined.exit_code == 0, joined.err
    assert whole.exit_code == 0


@pytest.mark.slow
def test_what_half_precision_spoils_is_not_exported(study: str, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "LARGEST_LOSS", -1.0)
    refused = cli("export", study, "--out", "one", "--half")
    assert refused.exit_code == 1
    assert re.fullmatch(
        r"error: --half: in half precision the validation accuracy would be [\d.]+% instead of [\d.]+%; export it "
        r"without --half\.\n",
        refused.err,
    )
    assert not Path("one").exists()


@pytest.mark.slow
def test_none_is_left_of_another_network(study: str, cli: Any) -> None:
    assert cli("export", study, "--trial", 0, "--out", "one", "--onnx").exit_code == 0
    assert Path("one/model.onnx").exists()
    assert cli("export", study, "--trial", 1, "--out", "one", "--no-onnx").exit_code == 0
    assert not Path("one/model.onnx").exists()
    assert "onnx" not in metrics_of("one")


def test_without_the_extra(study: str, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "NEEDED", ("onnx", "no_such_package"))
    finished = cli("export", study, "--out", "one")
    assert finished.exit_code == 0
    assert "model.onnx is not written: `pip install 'cifar-sweep[onnx]'` brings what it needs" in finished.out
    assert not Path("one/model.onnx").exists()
    assert "model.onnx" not in cli("export", study, "--out", "two", "--no-onnx").out
    for command in (("export", study), ("ensemble", study, "--top", 2), ("train", "one")):
        refused = cli(*command, "--onnx", "--out", "three")
        assert refused.exit_code == 2
        assert refused.err == "error: --onnx: no_such_package is not installed; `pip install 'cifar-sweep[onnx]'`.\n"
        assert not Path("three").exists()


@pytest.mark.slow
def test_a_file_that_says_something_else_is_not_written(study: str, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "largest_difference", lambda *_: float("nan"))
    finished = cli("export", study, "--out", "one")
    assert finished.exit_code == 0
    assert "one/model.onnx is not written: its probabilities would be nan away" in finished.out
    asked_for = cli("export", study, "--out", "two", "--onnx")
    assert asked_for.exit_code == 1
    assert "two/model.onnx is not written" in asked_for.err
    assert not Path("one/model.onnx").exists()
    assert tomllib.loads(Path("two/config.toml").read_text())["weights"]["sha256"]


def test_images_are_from_all_over_the_test_set(small_data: ImageData) -> None:
    many = small_data.test_images.repeat(4, 1, 1, 1)
    images = onnx.some_images(replace(small_data, test_images=many))
    assert torch.equal(images, torch.cat([pixels(small_data)[::4]] * 4))


@pytest.mark.slow
def test_the_runtime_tells_nobody_and_says_nothing_where_there_is_no_home() -> None:
    check_it = (
        "import os\n"
        "from cifar_sweep.exports.onnx import OnnxError, largest_difference\n"
        "try: largest_difference(b'', None, None)\n"
        "except (OnnxError, AttributeError): print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = os.environ | {"HOME": "/proc", "XDG_CACHE_HOME": "/proc"}
    ended = subprocess.run(
        [sys.executable, "-c", check_it], capture_output=True, text=True, env=environment, check=True
    )
    assert (ended.stdout, ended.stderr) == ("1\n", "")
