"""Every layer of every network: output shape and number of parameters, worked out by hand from the reports' tables.

conv(i, o, k) has i * o * k * k + o parameters, fc(i, o) has i * o + o, batch norm of c channels 2 * c.
"""

import itertools

import pytest
import torch
from torch import nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import Value
from cifar_sweep.training.models import build
from cifar_sweep.training.models.summary import LayerRow, macs, summarize

Weighty = tuple[str, tuple[int, ...], int]


def network(**params: Value) -> nn.Sequential:
    return build(TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0).shape, seed=1)


def conv(parameters: int, *shape: int) -> Weighty:
    return ("Conv2d", shape, parameters)


def norm(parameters: int, *shape: int) -> Weighty:
    return ("BatchNorm2d" if len(shape) == 3 else "BatchNorm1d", shape, parameters)


def pool(*shape: int) -> Weighty:
    return ("MaxPool2d", shape, 0)


def flat(width: int) -> Weighty:
    return ("Flatten", (width,), 0)


def fc(parameters: int, width: int) -> Weighty:
    return ("Linear", (width,), parameters)


# VGG's convolutions, each with its batch norm, named by the channels that come in and go out.
C3_64 = [conv(1_792, 64, 32, 32), norm(128, 64, 32, 32)]
C64_64 = [conv(36_928, 64, 32, 32), norm(128, 64, 32, 32)]
C64_128 = [conv(73_856, 128, 16, 16), norm(256, 128, 16, 16)]
C128_128 = [conv(147_584, 128, 16, 16), norm(256, 128, 16, 16)]
C128_256 = [conv(295_168, 256, 8, 8), norm(512, 256, 8, 8)]
C256_256 = [conv(590_080, 256, 8, 8), norm(512, 256, 8, 8)]
C256_512 = [conv(1_180_160, 512, 4, 4), norm(1_024, 512, 4, 4)]
C512_512_4 = [conv(2_359_808, 512, 4, 4), norm(1_024, 512, 4, 4)]
C512_512_2 = [conv(2_359_808, 512, 2, 2), norm(1_024, 512, 2, 2)]
P1, P2, P3 = [pool(64, 16, 16)], [pool(128, 8, 8)], [pool(256, 4, 4)]
P4, P5 = [pool(512, 2, 2)], [pool(512, 1, 1), flat(512)]
H256 = [fc(131_328, 256), fc(2_570, 10)]
H500 = [fc(256_500, 500), fc(5_010, 10)]
H4000 = [fc(2_052_000, 4000), fc(40_010, 10)]
TWO_BLOCKS = [*C3_64, *C64_64, *P1, *C64_128, *C128_128, *P2]

CASES: list[tuple[dict[str, Value], list[Weighty]]] = [
    (
        {"model": "lenet"},
        [
            conv(456, 6, 28, 28),
            pool(6, 14, 14),
            conv(2_416, 16, 10, 10),
            pool(16, 5, 5),
            flat(400),
            fc(48_120, 120),
            fc(10_164, 84),
            fc(850, 10),
        ],
    ),
    (
        {"model": "convnet", "hidden_units": 84},
        [
            conv(456, 6, 32, 32),
            norm(12, 6, 32, 32),
            pool(6, 16, 16),
            conv(880, 16, 16, 16),
            norm(32, 16, 16, 16),
            pool(16, 8, 8),
            conv(4_640, 32, 8, 8),
            norm(64, 32, 8, 8),
            pool(32, 4, 4),
            flat(512),
            fc(61_560, 120),
            fc(10_164, 84),
            fc(850, 10),
        ],
    ),
    (
        {"model": "convnet", "hidden_units": 80, "padding_mode": "reflect", "batch_norm": False},
        [
            conv(456, 6, 32, 32),
            pool(6, 16, 16),
            conv(880, 16, 16, 16),
            pool(16, 8, 8),
            conv(4_640, 32, 8, 8),
            pool(32, 4, 4),
            flat(512),
            fc(61_560, 120),
            fc(9_680, 80),
            fc(810, 10),
        ],
    ),
    (
        {"model": "cnn3", "batch_norm": False},
        [
            conv(448, 16, 32, 32),
            conv(4_640, 32, 32, 32),
            pool(32, 16, 16),
            conv(18_496, 64, 16, 16),
            pool(64, 8, 8),
            flat(4096),
            fc(409_700, 100),
            fc(1_010, 10),
        ],
    ),
    (
        {"model": "cnn3", "batch_norm": True},
        [
            conv(448, 16, 32, 32),
            norm(32, 16, 32, 32),
            conv(4_640, 32, 32, 32),
            norm(64, 32, 32, 32),
            pool(32, 16, 16),
            conv(18_496, 64, 16, 16),
            norm(128, 64, 16, 16),
            pool(64, 8, 8),
            flat(4096),
            fc(409_700, 100),
            norm(200, 100),
            fc(1_010, 10),
        ],
    ),
    (
        {"model": "cnn1"},
        [conv(1_792, 64, 32, 32), conv(409_856, 256, 32, 32), pool(256, 16, 16), flat(65_536), fc(655_370, 10)],
    ),
    (
        {"model": "vgg11", "hidden_units": 256},
        [
            *C3_64,
            *P1,
            *C64_128,
            *P2,
            *C128_256,
            *C256_256,
            *P3,
            *C256_512,
            *C512_512_4,
            *P4,
            *C512_512_2,
            *C512_512_2,
            *P5,
            *H256,
        ],
    ),
    (
        {"model": "vgg13", "hidden_units": 4000},
        [*TWO_BLOCKS, *C128_256, *C256_256, *P3, *C256_512, *C512_512_4, *P4, *C512_512_2, *C512_512_2, *P5, *H4000],
    ),
    (
        {"model": "vgg13", "hidden_units": 500},
        [*TWO_BLOCKS, *C128_256, *C256_256, *P3, *C256_512, *C512_512_4, *P4, *C512_512_2, *C512_512_2, *P5, *H500],
    ),
    (
        {"model": "vgg16"},
        [
            *TWO_BLOCKS,
            *C128_256,
            *C256_256,
            *C256_256,
            *P3,
            *C256_512,
            *C512_512_4,
            *C512_512_4,
            *P4,
            *C512_512_2,
            *C512_512_2,
            *C512_512_2,
            *P5,
            *H500,
        ],
    ),
    (
        {"model": "vgg19"},
        [
            *TWO_BLOCKS,
            *C128_256,
            *C256_256,
            *C256_256,
            *C256_256,
            *P3,
            *C256_512,
            *C512_512_4,
            *C512_512_4,
            *C512_512_4,
            *P4,
            *C512_512_2,
            *C512_512_2,
            *C512_512_2,
            *C512_512_2,
            *P5,
            *H500,
        ],
    ),
    (
        {"model": "vgg16-short", "hidden_units": 500},
        [
            *TWO_BLOCKS,
            *C128_256,
            *C256_256,
            *C256_256,
            *P3,
            *C256_512,
            *C512_512_4,
            *P4,
            *C512_512_2,
            *C512_512_2,
            *P5,
            *H500,
        ],
    ),
    (
        {"model": "vgg19-short"},
        [
            *TWO_BLOCKS,
            *C128_256,
            *C256_256,
            *C256_256,
            *C256_256,
            *P3,
            *C256_512,
            *C512_512_4,
            *C512_512_4,
            *P4,
            *C512_512_2,
            *C512_512_2,
            *C512_512_2,
            *P5,
            *H500,
        ],
    ),
]


@pytest.mark.parametrize(("params", "expected"), CASES, ids=[" ".join(map(str, case[0].values())) for case in CASES])
def test_every_layer(params: dict[str, Value], expected: list[Weighty]) -> None:
    rows = summarize(network(**params))
    kinds = {"Conv2d", "BatchNorm1d", "BatchNorm2d", "MaxPool2d", "Flatten", "Linear"}
    assert [(row.name, row.output_shape, row.parameters) for row in rows if row.name in kinds] == expected
    for before, row in itertools.pairwise(rows):
        if row.name not in kinds:
            assert row.name in {"ReLU", "Dropout", "Dropout2d"}
            assert (row.output_shape, row.parameters) == (before.output_shape, 0)


def test_details_say_what_the_class_does_not() -> None:
    rows = summarize(network(model="convnet", padding_mode="reflect", softmax=True))
    assert rows[0] == LayerRow("Conv2d", "3 -> 6, 5x5, padding 2, reflect", (6, 32, 32), 456)
    assert [row.detail for row in rows[1:5]] == ["6 channels", "", "2x2", "6 -> 16, 3x3, padding 1"]
    assert rows[-2:] == [LayerRow("Linear", "84 -> 10", (10,), 850), LayerRow("Softmax", "", (10,), 0)]
    assert summarize(network(model="lenet"))[0].detail == "3 -> 6, 5x5, no padding"
    details = {row.name: row.detail for row in summarize(network(model="cnn3", batch_norm=True))}
    assert (details["BatchNorm1d"], details["Dropout2d"]) == ("100 features", "rate 0, whole channels")


# Outputs * inputs of each: of a convolution, output channels * height * width times input channels * kernel area.
MACS = {
    "lenet": 6 * 784 * 75 + 16 * 100 * 150 + 400 * 120 + 120 * 84 + 84 * 10,
    "convnet": 6 * 1024 * 75 + 16 * 256 * 54 + 32 * 64 * 144 + 512 * 120 + 120 * 84 + 84 * 10,
    "cnn3": 10_290_152,
    "cnn1": 421_855_232,
    "vgg11": 153_025_416,
}


@pytest.mark.parametrize("model", MACS)
def test_multiply_accumulates(model: str) -> None:
    assert macs(network(model=model)) == MACS[model]


def test_the_network_is_left_as_it_was() -> None:
    layers = network(model="cnn3", batch_norm=True)
    layers.train()
    layers[0].eval()
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    summarize(layers)
    assert [layer.training for layer in layers] == [False] + [True] * (len(layers) - 1)
    assert layers.training
    for name, value in layers.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in layers.parameters())


@pytest.mark.parametrize("side", [28, 48, 64, 96])
@pytest.mark.parametrize("model", ["lenet", "convnet", "cnn3", "cnn1", "vgg11"])
def test_networks_take_images_of_other_sizes(model: str, side: int) -> None:
    if (model, side) == ("vgg11", 28):
        with pytest.raises(UsageError, match="vgg11 halves images five times"):
            network(model=model, image_size=side)
        return
    made = (
        network(model=model, image_size=side, hidden_units=10)
        if model != "cnn1"
        else network(model=model, image_size=side)
    )
    with torch.no_grad():
        assert made(torch.zeros(2, 3, side, side)).shape == (2, 10)
    assert summarize(made, side=side)[-1].output_shape == (10,)
    assert (macs(made, side=side) > macs(network(model=model))) == (side > 32)
