"""Every network against the numbers that its report prints or that follow from its layers."""

import pytest
import torch
from torch import nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.parameters import MODEL_NAMES
from cifar_sweep.training.models import build
from cifar_sweep.training.models.networks import ACTIVATIONS

# The sum over the reports' layer tables: conv(i, o, k) has i * o * k * k + o, fc(i, o) has i * o + o, batch norm 2 * c;
# batch norm where it is the report's default, VGG's classifier with 500 hidden units.
PARAMETERS = {
    "lenet": 62_006,
    "convnet": 78_658,
    "cnn3": 434_294,
    "cnn1": 1_067_018,
    "cnn": 86_346,
    "vgg11": 9_487_494,
    "vgg13": 9_672_390,
    "vgg16": 14_984_646,
    "vgg19": 20_296_902,
    "vgg16-short": 10_262_982,
    "vgg19-short": 15_575_238,
}


def network(**params: object) -> nn.Sequential:
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0)  # type: ignore[arg-type]
    return build(config.shape, seed=1)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_parameter_count(model: str) -> None:
    assert count(network(model=model)) == PARAMETERS[model]


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_output_shape(model: str, batch_norm: bool) -> None:
    assert network(model=model, batch_norm=batch_norm)(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_features_before_the_classifier() -> None:
    widths = {"lenet": 400, "convnet": 512, "cnn3": 4096, "cnn1": 65536, "vgg11": 512, "vgg19-short": 512}
    for model, width in widths.items():
        layers = network(model=model)
        flatten = next(index for index, layer in enumerate(layers) if isinstance(layer, nn.Flatten))
        assert layers[: flatten + 1](torch.rand(2, 3, 32, 32)).shape == (2, width)


def test_the_middle_width_of_report_c() -> None:
    assert count(network(model="convnet", hidden_units=80)) == PARAMETERS["convnet"] - 4 * (120 + 1) - 4 * 10


def test_report_c_pads_the_first_convolution_by_reflection() -> None:
    convolutions = [layer for layer in network(model="convnet", padding_mode="reflect") if isinstance(layer, nn.Conv2d)]
    assert [layer.padding_mode for layer in convolutions] == ["reflect", "zeros", "zeros"]


def kinds(layers: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in layers]


def test_the_order_of_report_b_is_activation_dropout_norm() -> None:
    layers = kinds(network(model="cnn3", batch_norm=True, activation="leaky_relu"))
    assert layers[:4] == ["Conv2d", "LeakyReLU", "Dropout2d", "BatchNorm2d"]
    assert layers[-5:] == ["Linear", "LeakyReLU", "Dropout", "BatchNorm1d", "Linear"]


def test_the_other_order_is_norm_activation_dropout() -> None:
    layers = kinds(network(model="cnn3", batch_norm=True, norm_position="before_activation"))
    assert layers[:4] == ["Conv2d", "BatchNorm2d", "ReLU", "Dropout2d"]


@pytest.mark.parametrize(("activation", "kind"), [(name, kind.__name__) for name, kind in ACTIVATIONS.items()])
def test_every_activation_is_used(activation: str, kind: str) -> None:
    assert kind.lower() == ("identity" if activation == "none" else activation.replace("_", ""))
    assert kinds(network(model="vgg11", activation=activation)).count(kind) == 9


@pytest.mark.parametrize(("model", "convolutions"), [("vgg11", 8), ("vgg13", 10), ("vgg16", 13), ("vgg19", 16)])
def test_depth_counts_convolutions_and_the_papers_three_linear_layers(model: str, convolutions: int) -> None:
    assert kinds(network(model=model)).count("Conv2d") == convolutions
    assert int(model[3:]) == convolutions + 3


def test_short_vggs_are_those_of_report_d() -> None:
    assert kinds(network(model="vgg16-short")).count("Conv2d") == 11
    assert kinds(network(model="vgg19-short")).count("Conv2d") == 14


def test_softmax_gives_probabilities() -> None:
    output = network(model="convnet", softmax=True)(torch.rand(3, 3, 32, 32))
    torch.testing.assert_close(output.sum(dim=1), torch.ones(3))


def test_xavier_bounds() -> None:
    """Glorot and Bengio (2010): uniform within sqrt(6 / (fan in + fan out)), which PyTorch's default exceeds here."""
    layer = network(model="convnet", init="xavier")[0]
    assert isinstance(layer, nn.Conv2d)
    bound = (6 / (75 + 150)) ** 0.5
    assert layer.weight.abs().max() <= bound
    assert layer.weight.abs().max() > 0.9 * bound
    assert layer.bias is not None
    assert not layer.bias.any()


def test_kaiming_keeps_the_variance_through_relu() -> None:
    """He et al. (2015): a deviation of sqrt(2 / fan in)."""
    layer = network(model="convnet", init="kaiming")[-1]
    assert isinstance(layer, nn.Linear)
    assert layer.weight.std().item() == pytest.approx((2 / 84) ** 0.5, rel=0.1)
    assert not layer.bias.any()


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = TrialConfig.from_params({"model": "lenet"}, classes=10, precision="fp32", data_seed=0, seed=0)
    torch.manual_seed(5)
    first = build(config.shape, seed=1)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    second = build(config.shape, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first[0].weight, build(config.shape, seed=2)[0].weight)  # type: ignore[arg-type]


def test_parameter_names_do_not_depend_on_dropout() -> None:
    for model in MODEL_NAMES:
        assert network(model=model, dropout=0.5).state_dict().keys() == network(model=model).state_dict().keys()
