"""Networks as plain data and as tables."""

import io
import json
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import MODEL_NAMES
from cifar_sweep.terminal.model import describe_model, overview, overview_table, table


def lines(view: Table) -> list[str]:
    """The printed lines, with single spaces."""
    screen = Console(file=io.StringIO(), width=160, color_system=None)
    screen.print(view)
    assert isinstance(screen.file, io.StringIO)
    return [" ".join(line.split()) for line in screen.file.getvalue().splitlines()]


def test_a_description_is_plain_data() -> None:
    description = describe_model({"model": "vgg13", "hidden_units": 4000, "dropout": 0.3})
    assert json.loads(json.dumps(description)) == description
    assert description["model"] == "vgg13"
    # vgg13's 9,672,390 with fc(512,4000) and fc(4000,10) in place of fc(512,500) and fc(500,10)
    assert description["parameters"] == 11_502_890
    assert description["multiply_accumulates"] == 228_522_888 + 3500 * (512 + 10)
    assert description["layers"][0] == {
        "layer": "Conv2d",
        "detail": "3 -> 64, 3x3, padding 1",
        "output_shape": [64, 32, 32],
        "parameters": 1792,
    }
    [dropout] = [layer for layer in description["layers"] if layer["layer"] == "Dropout"]
    assert dropout["detail"] == "rate 0.3"


def test_a_wrong_parameter_is_refused() -> None:
    with pytest.raises(UsageError, match="hiden_units"):
        describe_model({"hiden_units": 5})


def test_the_table_ends_with_the_total() -> None:
    shown = lines(table(describe_model({"model": "cnn3"})))
    assert shown[1] == "Conv2d 3 -> 16, 3x3, padding 1 16 x 32 x 32 448"
    assert "Linear 4096 -> 100 100 409,700" in shown
    assert shown[-1] == "total 434,294"


def test_the_overview_has_every_model() -> None:
    rows = {row["model"]: row for row in overview()}
    assert list(rows) == list(MODEL_NAMES)
    assert rows["vgg19"]["parameters"] == 20_296_902
    assert rows["lenet"]["multiply_accumulates"] == 651_720
    assert rows["convnet"]["beyond_common"] == ["hidden_units", "padding_mode"]
    assert rows["cnn1"]["beyond_common"] == []
    assert rows["vgg11"]["defaults"] == {"batch_norm": True, "hidden_units": 500}
    shown = lines(overview_table({"models": list(rows.values())}))
    assert "vgg11 9,487,494 153,025,416 batch_norm=true hidden_units=500 hidden_units" in shown
    assert "cnn1 1,067,018 421,855,232 - -" in shown


def test_the_command_shows_one_network_or_all(cli: Any) -> None:
    shown = cli("model", "vgg13", "--set", "hidden_units=4000")
    assert shown.exit_code == 0
    for words in ("Conv2d", "512 x 2 x 2", "2,052,000", "total"):
        assert words in shown.out
    described = json.loads(cli("model", "vgg13", "--set", "hidden_units=4000", "--json").out)
    assert described["parameters"] == sum(layer["parameters"] for layer in described["layers"])
    overview = json.loads(cli("model", "--json").out)["models"]
    assert [row["model"] for row in overview] == list(MODEL_NAMES)
    table = cli("model").out
    assert all(name in table for name in MODEL_NAMES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("vgg12",), "model = 'vgg12' is not accepted; it takes one of lenet"),
        (("vgg13", "--set", "hidden=3"), "there is no parameter 'hidden'"),
        (("--set", "hidden_units=3"), "name the network that it changes"),
    ],
)
def test_the_command_refuses(cli: Any, arguments: Any, words: str) -> None:
    refused = cli("model", *arguments)
    assert refused.exit_code == 2
    assert words in refused.err
