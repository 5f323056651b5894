"""The networks in words and numbers: one layer by layer, or all of them at a glance."""

from collections.abc import Mapping
from typing import Any

import torch
from rich.table import Column, Table
from torch import nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.parameters import MODEL_NAMES, MODEL_TRAITS, NAMES, PARAMETERS, Value
from cifar_sweep.training.models import build
from cifar_sweep.training.models.summary import macs, summarize

_IN_EVERY_MODEL = frozenset(PARAMETERS).intersection(*(has for has, _ in MODEL_TRAITS.values()))


def describe_model(params: Mapping[str, Value]) -> dict[str, Any]:
    """The network of a trial with these parameters, for ten classes, as plain data; raises UsageError as they do.

    Multiply-accumulates are of one image's forward pass, a layer's output shape is without the batch axis.
    """
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0)
    network = build(config.shape, seed=0)
    for layer in network.modules():
        if isinstance(layer, (nn.Dropout, nn.Dropout2d)):
            layer.p = config.knobs.rate(
                getattr(layer, "place", "dropout")
            )  # `build` leaves it at 0: the trainer sets it
    side = config.shape.image_size
    rows = summarize(network, side=side)
    return {
        "model": config.shape.model,
        "parameters": sum(row.parameters for row in rows),
        "multiply_accumulates": macs(network, side=side),
        "layers": [
            {"layer": row.name, "detail": row.detail, "output_shape": [*row.output_shape], "parameters": row.parameters}
            for row in rows
        ],
    }


def table(description: Mapping[str, Any]) -> Table:
    """`describe_model`'s result for a terminal."""
    view = Table("layer", "detail", "output", Column("parameters", justify="right"), box=None)
    for row in description["layers"]:
        output = " x ".join(map(str, row["output_shape"]))
        view.add_row(row["layer"], row["detail"], output, f"{row['parameters']:,}")
    view.add_row("total", "", "", f"{description['parameters']:,}")
    return view


def overview() -> list[dict[str, Any]]:
    """Every model with its report's own settings, as plain data.

    ``defaults`` are those that differ from the general ones, ``beyond_common`` the parameters that not every model has.
    """
    rows = []
    for model in MODEL_NAMES:
        with torch.device("meta"):  # shapes without numbers: ten networks in the time of one
            described = describe_model({"model": model})
        has, defaults = MODEL_TRAITS[model]
        counts = {name: described[name] for name in ("model", "parameters", "multiply_accumulates")}
        rows.append(
            counts | {"defaults": dict(defaults), "beyond_common": sorted((has & set(NAMES)) - _IN_EVERY_MODEL)}
        )
    return rows


def overview_table(description: Mapping[str, Any]) -> Table:
    """The networks at a glance for a terminal: `models` is what `overview` gives."""
    numbers = (Column(heading, justify="right") for heading in ("parameters", "multiply-accumulates"))
    view = Table(Column("model", no_wrap=True), *numbers, "own defaults", "also takes", box=None)
    for row in description["models"]:
        defaults = " ".join(f"{name}={str(value).lower()}" for name, value in row["defaults"].items())
        counts = f"{row['parameters']:,}", f"{row['multiply_accumulates']:,}"
        view.add_row(row["model"], *counts, defaults or "-", ", ".join(row["beyond_common"]) or "-")
    return view
