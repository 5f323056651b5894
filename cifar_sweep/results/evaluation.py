"""What an export is worth on the test set: accuracy, class by class, and what it takes for what."""

from collections.abc import Mapping
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from cifar_sweep.results.classifier import accuracy, confusion, loss, predict, resident
from cifar_sweep.results.exported import Exported
from cifar_sweep.training.data import ImageData


def evaluate_export(export: Exported, data: ImageData, *, device: torch.device) -> dict[str, Any]:
    """Read the test set, in float32. Accuracies are fractions; `confusion` counts images, a row per right class."""
    test = predict(export.classifier(), resident(data, device=device).test(), device=device)
    counts = confusion(test.mean, test.labels)
    return {
        "export": str(export.folder),
        "shortened": export.shortened,
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "test_accuracy": accuracy(test.mean, test.labels),
        "test_loss": loss(test.mean, test.labels),
        "test_images": len(test.labels),
        "members": [accuracy(test.member(k), test.labels) for k in range(len(test.probabilities))],
        "classes": [
            {"class": name, "images": sum(row), "accuracy": row[label] / sum(row) if sum(row) else None}
            for label, (name, row) in enumerate(zip(data.classes, counts, strict=True))
        ],
        "confusion": counts,
    }


def table(evaluation: Mapping[str, Any]) -> Table:
    """The confusion matrix with each class's accuracy, for a terminal."""
    classes = evaluation["classes"]
    view = Table(box=None, caption="a row is what the images show, a column what they were taken for")
    view.add_column("")
    for entry in classes:
        view.add_column(escape(entry["class"]), justify="right")
    view.add_column("accuracy", justify="right")
    for label, (entry, row) in enumerate(zip(classes, evaluation["confusion"], strict=True)):
        cells = [f"[bold]{count}[/]" if place == label else str(count) for place, count in enumerate(row)]
        share = "-" if entry["accuracy"] is None else f"{entry['accuracy']:.1%}"
        view.add_row(escape(entry["class"]), *cells, share)
    return view
