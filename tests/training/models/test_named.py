"""Networks of torchvision by name: fitted to small images, trained, resumed, frozen, begun with pretrained weights."""

import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.exports.source import network_source
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build, named
from cifar_sweep.training.models.own import check_outputs, fingerprints
from cifar_sweep.training.train import Run
from cifar_sweep.work.submit import submit

LARGE = ("resnet50", "densenet121", "googlenet", "efficientnet_b0", "convnext_tiny", "mnasnet0_5", "vgg11")
SMALLEST = "torchvision:shufflenet_v2_x0_5"


def config(model: str = SMALLEST, *, seed: int = 0, **params: Any) -> TrialConfig:
    small = {"model": model, "batch_size": 32, "epochs": 3, "train_images": 64, "validation_images": 40}
    return TrialConfig.from_params(small | params, classes=10, precision="fp32", data_seed=7, seed=seed)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in LARGE
        ),
    ],
)  # fmt: skip
def test_a_network_takes_images_of_32_pixels(name: str) -> None:
    check_outputs(config(f"torchvision:{name}").shape)


def test_small_images_keep_their_size_in_the_stem() -> None:
    small, large = (build(config("torchvision:resnet18", image_size=side).shape, seed=0) for side in (32, 128))
    assert (small.conv1.stride, type(small.maxpool)) == ((1, 1), nn.Identity)  # type: ignore[union-attr]
    assert (large.conv1.stride, type(large.maxpool)) == ((2, 2), nn.MaxPool2d)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("torchvision:resnet19", "torchvision has no such network; did you mean resnet18"),
        ("torchvision:vit_b_16", "it fails on images"),
        ("timm:no_such_thing", "timm "),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_sentence(model: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_outputs(config(model).shape)


def test_a_library_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm is not installed: .*; accepted: pip install timm"):
        build(config("timm:resnet18").shape, seed=0)


def test_parameters_that_a_named_network_has_not_do_nothing() -> None:
    assert config(hidden_units=7, activation="tanh") == config()


def test_a_group_trains_each_alone_and_goes_on_bit_for_bit(small_data: ImageData) -> None:
    configs = [config(dropout=0.3), config(seed=1, learning_rate=3e-3)]
    unbroken, first, second = (Run(configs, small_data, device=torch.device("cpu")) for _ in range(3))
    alone = Run(configs[:1], small_data, device=torch.device("cpu"))
    for run in (unbroken, first, alone):
        run.epoch()
    assert unbroken.members[0].history[0].train_loss == pytest.approx(alone.members[0].history[0].train_loss, rel=1e-4)
    for k in range(2):
        second.restore(k, first.state(k))
    for run in (unbroken, second):
        run.epoch()
    for k in range(2):
        for name, value in unbroken.network.member_state(k).items():
            assert torch.equal(value, second.network.member_state(k)[name]), name


def test_stages_are_frozen_from_the_first_and_the_last_layer_never_is() -> None:
    def trained(freeze: int) -> set[str]:
        network = build(config("torchvision:resnet18", freeze=freeze).shape, seed=0)
        return {name.partition(".")[0] for name, each in network.named_parameters() if each.requires_grad}

    everything = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
    assert trained(0) == everything
    assert trained(3) == everything - {"conv1", "bn1", "layer1"}
    assert trained(100) == {"fc"}


def test_pretrained_weights_are_taken_where_they_fit(monkeypatch: pytest.MonkeyPatch, small_data: ImageData) -> None:
    other = named.named_network(SMALLEST, 1000, False)
    monkeypatch.setattr(named, "_pretrained", lambda _: other.state_dict())
    made = config(pretrained=True, freeze=1)
    run = Run([made], small_data, device=torch.device("cpu"))
    run.epoch()
    mine = run.network.member_state(0)
    assert torch.equal(mine["conv1.0.weight"], other.state_dict()["conv1.0.weight"])
    assert mine["fc.1.weight"].shape == (10, 1024)
    plain = build(made.shape, seed=0)  # as for a summary, which downloads nothing
    assert not torch.equal(plain.state_dict()["conv1.0.weight"], other.state_dict()["conv1.0.weight"])


@pytest.mark.slow
def test_who_goes_on_from_a_state_needs_no_pretrained_weights(
    monkeypatch: pytest.MonkeyPatch, small_data: ImageData
) -> None:
    asked: list[str] = []
    weights = named.named_network(SMALLEST, 1000, False).state_dict()
    monkeypatch.setattr(named, "_pretrained", lambda model: asked.append(model) or weights)
    first, second = (Run([config(pretrained=True)], small_data, device=torch.device("cpu")) for _ in range(2))
    first.epoch()
    second.restore(0, first.state(0))
    second.epoch()
    assert asked == [SMALLEST]


def test_pretrained_weights_that_cannot_be_had_are_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", away)
    named._pretrained.cache_clear()
    with pytest.raises(UsageError, match=r"its pretrained weights cannot be had: .*no network; accepted: pretrained"):
        build(config(pretrained=True).shape, seed=0, begin=True)


def test_hidden_layers_stand_before_the_last_one() -> None:
    head = build(config(head_layers=2, head_units=20).shape, seed=0).fc
    assert [(each.in_features, each.out_features) for each in head if isinstance(each, nn.Linear)] == [
        (1024, 20), (20, 20), (20, 10),
    ]  # fmt: skip
    assert [type(each) for each in head[1:4]] == [nn.Linear, nn.ReLU, nn.Dropout]
    with pytest.raises(UsageError, match="it ends with no linear layer"):
        build(config(model="torchvision:squeezenet1_0", head_layers=1).shape, seed=0)


def saved(path: Path, tensors: dict[str, Tensor]) -> str:
    """A file of weights, by its name: tests run in a folder of their own."""
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path.name


@pytest.mark.parametrize("classes", [1000, 10])
def test_a_network_begins_with_the_weights_of_a_file(classes: int) -> None:
    """Named as the library names them; the last layer is that of the file where it has as many classes."""
    import torchvision

    other = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=classes).state_dict()
    made = config(weights_file=saved(Path("other.safetensors"), other))
    mine = build(made.shape, seed=0, begin=True).state_dict()
    assert torch.equal(mine["stage4.1.branch2.0.weight"], other["stage4.1.branch2.0.weight"])
    head = build(config().shape, seed=0).state_dict()["fc.1.weight"] if classes == 1000 else other["fc.weight"]
    assert torch.equal(mine["fc.1.weight"], head)


@pytest.mark.slow
def test_what_is_held_still_stays_as_the_file_has_it(small_data: ImageData) -> None:
    other = build(config(seed=5).shape, seed=5).state_dict()  # as an export names them
    made = config(weights_file=saved(Path("other.safetensors"), other), freeze=1, freeze_epochs=1, head_rate=0.1)
    run = Run([made], small_data, device=torch.device("cpu"))
    run.epoch()
    mine = run.network.member_state(0)
    for name in (name for name, _ in build(made.shape, seed=0).named_parameters()):
        assert torch.equal(mine[name], other[name]) == (not name.startswith("fc.1")), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"conv1.0.weight": torch.zeros(3, 3)},
            r"weights_file 'other.safetensors': conv1.0.weight is of \[3, 3\]; torchvision:shufflenet_v2_x0_5 takes "
            r"\[24, 3, 3, 3\] there\.$",
        ),
        ({"conv1.0.weight": None}, r"conv1.0.weight is missing; .* takes \[24, 3, 3, 3\] there\.$"),
        ({"conv9.weight": torch.zeros(1)}, "has nothing named 'conv9.weight'; did you mean conv"),
    ],
)
def test_a_file_of_another_network_is_refused(change: dict[str, Tensor | None], words: str) -> None:
    weights = build(config().shape, seed=5).state_dict() | change
    made = config(weights_file=saved(Path("other.safetensors"), {k: v for k, v in weights.items() if v is not None}))
    with pytest.raises(UsageError, match=words):
        check_outputs(made.shape)


@pytest.mark.parametrize(
    ("name", "words"),
    [("pickle", "not a whole safetensors file .*; accepted: a state dict as safetensors"), ("away", "No such file")],
)
def test_a_file_that_is_none_is_refused(name: str, words: str) -> None:
    torch.save(build(config().shape, seed=5).state_dict(), "pickle.safetensors")
    with pytest.raises(UsageError, match=words):
        check_outputs(config(weights_file=f"{name}.safetensors").shape)


@pytest.mark.slow
def test_a_study_goes_on_with_the_same_file_of_weights_alone(small_data: ImageData) -> None:
    weights = build(config().shape, seed=5).state_dict()
    fixed = {"model": SMALLEST, "weights_file": saved(Path("other.safetensors"), weights)}
    space = {"learning_rate": {"choices": [0.1, 0.2]}}
    sweep = parse({"name": "s", "sampler": "random", "fixed": fixed, "space": space}, where="test")

    def again() -> SweepStudy:
        return submit("sqlite:///studies.db", "own", sweep, small_data, source="synthetic:500")

    again()
    saved(Path("other.safetensors"), weights | {"fc.1.bias": torch.ones(10)})
    with pytest.raises(StudyError, match=r"was run with another file for weights_file 'other\.safetensors'"):
        again()
    saved(Path("other.safetensors"), weights)
    assert again().code == fingerprints(["other.safetensors"])


@pytest.mark.slow
def test_a_file_that_is_changed_while_its_study_runs_is_refused(small_data: ImageData) -> None:
    weights = build(config().shape, seed=5).state_dict()
    made = config(weights_file=saved(Path("other.safetensors"), weights))
    code = fingerprints([made.shape.own_file])[made.shape.own_file]
    Run([made], small_data, device=torch.device("cpu"), code=code).epoch()
    saved(Path("other.safetensors"), weights | {"fc.1.bias": torch.ones(10)})
    with pytest.raises(StudyError, match=r"weights_file 'other\.safetensors': it is another file by now; restore it"):
        Run([made], small_data, device=torch.device("cpu"), code=code).epoch()


def test_the_script_of_an_export_makes_the_same_network() -> None:
    for made in (config(), config(input_size=24), config(head_layers=2, head_units=20)):
        network = build(made.shape, seed=0)
        printed = eval(network_source(made, network), {"named_network": named.named_network, "nn": nn})
        assert str(printed) == str(network)
        assert printed.state_dict().keys() == network.state_dict().keys()
