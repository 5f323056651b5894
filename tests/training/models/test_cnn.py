"""`model = "cnn"`: any setting is the network that its numbers say, in a group as by itself, or is said to be none."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import ACTIVATION_NAMES
from cifar_sweep.training.fuse import can_fuse
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build
from cifar_sweep.training.train import Run
from tests.training.runs import assert_fused_is_plain

CPU = torch.device("cpu")


def config(*, seed: int = 0, **params: Any) -> TrialConfig:
    small = {"model": "cnn", "batch_size": 50, "epochs": 3, "train_images": 100}
    return TrialConfig.from_params(small | params, classes=10, precision="fp32", data_seed=7, seed=seed)


def kinds(**params: Any) -> list[str]:
    return [f"{type(layer).__name__}" for layer in build(config(**params).shape, seed=0)]


def sizes(of: type[nn.Module], **params: Any) -> list[int]:
    layers = [layer for layer in build(config(**params).shape, seed=0) if isinstance(layer, of)]
    return [layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features for layer in layers]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("params", "convolutions", "dense"),
    [
        ({}, [32, 32, 32], [128, 10]),
        ({"filters": 16, "filter_growth": "double", "conv_layers": 4}, [16, 32, 64, 128], [128, 10]),
        ({"filters": 16, "filter_growth": "half"}, [16, 8, 4], [128, 10]),
        ({"filters": 10, "filter_growth": "1.5"}, [10, 15, 22], [128, 10]),
        ({"filters": 2, "filter_growth": "half"}, [2, 1, 1], [128, 10]),
        ({"filters": [8, 24], "dense_units": [7, 5]}, [8, 24], [7, 5, 10]),
        ({"filters_2": 5, "dense_layers": 2, "dense_units_1": 6}, [32, 5, 32], [6, 128, 10]),
        ({"filters": [8, 24], "filters_1": 3, "convs_per_block": 2}, [3, 3, 24, 24], [128, 10]),
        ({"dense_layers": 0}, [32, 32, 32], [10]),
        ({"conv_layers": 1, "filters_2": 5}, [32], [128, 10]),  # what no layer has does nothing
    ],
)
def test_widths_are_what_the_numbers_say(params: dict[str, Any], convolutions: list[int], dense: list[int]) -> None:
    assert (sizes(nn.Conv2d, **params), sizes(nn.Linear, **params)) == (convolutions, dense)


def test_a_network_that_sees_smaller_images_is_one_for_these_behind_an_average() -> None:
    shape = config(image_size=48, input_size=20, softmax=True).shape
    network, smaller = build(shape, seed=3), build(shape.seen, seed=3)
    images = torch.rand(2, 3, 48, 48)
    assert shape.seen.image_size == 20
    assert torch.equal(network(images), smaller(nn.functional.adaptive_avg_pool2d(images, 20)))
    for size, wrong in ((32, 33), (32, 7)):
        fault = config(image_size=size, input_size=wrong).shape.fault
        assert fault == f"input_size = {wrong} is not accepted; it takes a whole number from 8 to the images' 32, or 0"


def test_a_network_says_which_images_are_too_small_for_it() -> None:
    assert config(model="lenet", image_size=15).shape.fault.startswith("lenet leaves nothing of images below 16 pixels")
    assert config(model="lenet", image_size=48, input_size=12).shape.fault
    assert build(config(model="lenet", image_size=16).shape, seed=0)(torch.rand(2, 3, 16, 16)).shape == (2, 10)


def test_a_layer_has_what_follows_it_in_order() -> None:
    params: dict[str, Any] = {
        "conv_layers": 1, "batch_norm": True, "activation": "gelu", "pooling": "avg", "global_pooling": True,
        "dense_batch_norm": True, "dense_activation": "mish",
    }  # fmt: skip
    first = ["Conv2d", "BatchNorm2d", "GELU", "AvgPool2d", "Dropout2d", "AdaptiveAvgPool2d", "Flatten"]
    assert kinds(**params) == [*first, "Linear", "BatchNorm1d", "Mish", "Dropout", "Linear"]
    assert kinds(**params | {"norm_position": "after_activation"})[:3] == ["Conv2d", "GELU", "BatchNorm2d"]


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="kernel_size = 3,5,3 has 3 of them, one a layer, where there are 2"):
        config(filters=[8, 16], kernel_size=[3, 5, 3])
    with pytest.raises(UsageError, match="filters = 8,16 has 2 of them, one a layer, where there are 4"):
        config(filters=[8, 16], conv_layers=4)


def test_a_config_is_read_as_it_was_written() -> None:
    whole = config(filters=[8, 16], pooling_2="none", conv_dropout_1=0.3, conv_dropout=0.1, dropout_1=0.2)
    stored = whole.to_dict()
    assert (stored["filters"], stored["conv_layers"], stored["conv_dropout_1"]) == ("8,16", 2, 0.3)
    assert TrialConfig.from_dict(stored) == whole
    rates = [whole.knobs.rate(place) for place in ("conv_dropout_1", "conv_dropout_2", "dropout_1", "dropout_2")]
    assert rates == [0.3, 0.1, 0.2, 0.0]
    assert config(conv_dropout=[0.1, 0.2]).knobs.rate("conv_dropout_2") == 0.2


def test_what_other_models_store_has_none_of_it() -> None:
    other = TrialConfig.from_params({"model": "lenet", "filters": 8}, classes=10, precision="fp32", data_seed=0, seed=0)
    assert not {"filters", "kernel_size", "conv_layers", "conv_dropout"} & other.to_dict().keys()


SIDES = st.integers(8, 14)
LAYER = {
    "filters": st.integers(1, 4), "kernel_size": st.integers(1, 5), "pool_size": st.integers(1, 3),
    "pooling": st.sampled_from(["max", "avg", "none"]), "dense_units": st.integers(1, 4),
    "padding": st.sampled_from(["same", "valid", "0", "2"]),
}  # fmt: skip
GENERAL = LAYER | {
    "conv_layers": st.integers(1, 3), "convs_per_block": st.integers(1, 2), "stride": st.integers(1, 2),
    "filter_growth": st.sampled_from(["same", "double", "half", "1.5"]),
    "global_pooling": st.booleans(), "dense_layers": st.integers(0, 2), "dense_batch_norm": st.booleans(),
    "dense_activation": st.sampled_from(["as_activation", *ACTIVATION_NAMES]), "batch_norm": st.booleans(),
    "activation": st.sampled_from(ACTIVATION_NAMES), "padding_mode": st.sampled_from(["zeros", "reflect"]),
    "norm_position": st.sampled_from(["before_activation", "after_activation"]), "input_size": st.just(8),
}  # fmt: skip
BY_LAYER = {f"{name}_{layer}": values for name, values in LAYER.items() for layer in (1, 2)}
ANY = st.fixed_dictionaries({"image_size": SIDES}, optional=GENERAL | BY_LAYER)


def check_any(params: dict[str, Any]) -> None:
    """Two members as one network are what each is alone, or the setting is said to leave nothing of an image."""
    shape = config(**params).shape
    if shape.fault:
        assert "have nothing left after layer" in shape.fault
        with pytest.raises(UsageError, match="have nothing left"):
            build(shape, seed=0)
        return
    assert can_fuse(build(shape, seed=0))
    assert_fused_is_plain(shape, outputs=(1e-8, 1e-10), gradients=(1e-5, 1e-7))


@settings(max_examples=12, deadline=None)
@given(ANY)
def test_any_network_in_a_group_is_what_it_is_alone(params: dict[str, Any]) -> None:
    check_any(params)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(ANY)
def test_three_hundred_networks_in_a_group_are_what_they_are_alone(params: dict[str, Any]) -> None:
    check_any(params)


SMALL: dict[str, Any] = {"filters": 4, "conv_layers": 2, "dense_units": 8, "batch_norm": True}
MEMBERS: list[dict[str, Any]] = [
    {"conv_dropout": 0.1, "conv_dropout_2": 0.5, "dropout": 0.3},
    {"learning_rate": 3e-3},
    {"dropout_1": 0.4, "learning_rate": 1000},  # it diverges
]


def trained(members: list[int], data: ImageData, *, epochs: int, **params: Any) -> Run:
    run = Run([config(seed=k, **SMALL, **params, **MEMBERS[k]) for k in members], data, device=CPU)
    for _ in range(epochs):
        run.epoch()
    return run


@pytest.mark.parametrize("params", [{}, {"pooling": "avg", "activation": "mish", "stride": 2}])
def test_a_member_is_what_it_is_alone_whoever_is_beside_it(params: dict[str, Any], small_data: ImageData) -> None:
    together = trained([0, 1, 2], small_data, epochs=2, **params)
    for k in (0, 1):
        alone = trained([k], small_data, epochs=2, **params).members[0].history
        mine = together.members[k].history
        assert [each.train_loss for each in mine] == pytest.approx([each.train_loss for each in alone], rel=1e-3)
    losses = [trained([k], small_data, epochs=1, **params).members[0].history[0].train_loss for k in (0, 1)]
    assert losses[0] != losses[1]


def test_a_restored_member_goes_on_bit_for_bit(small_data: ImageData) -> None:
    whole = trained([0, 1], small_data, epochs=3)
    broken, again = trained([0, 1], small_data, epochs=1), trained([0, 1], small_data, epochs=0)
    for k in range(2):
        again.restore(k, broken.state(k))
    for _ in range(2):
        again.epoch()
    for k in range(2):
        for name, value in whole.network.member_state(k).items():
            assert torch.equal(value, again.network.member_state(k)[name]), name


def test_dropout_has_the_rate_of_its_place() -> None:
    run = Run([config(**SMALL, **MEMBERS[0]), config(**SMALL, dropout_1=0.4)], None, device=CPU)
    layers = [layer for layer in run.network.modules() if hasattr(layer, "masks")]
    assert [[mask.rate for mask in layer.masks] for layer in layers] == [[0.1, 0.0], [0.5, 0.0], [0.3, 0.4]]  # type: ignore[union-attr]
