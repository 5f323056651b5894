"""Hand runs by their reports' own protocol: trained on all 50,000 images, the epoch picked by its test accuracy.

The product never does this: it trains on 40,000 images, picks the epoch on 10,000 others, and reads the test set once.
This script tells how much of the difference between a claim and `cifar-sweep compare` is that protocol's; its figures
are no results.

    python benchmarks/reports_protocol.py --only B-001,E-1 [--data FOLDER] [--seeds 3] [--set batch_size=16] [--json]
"""

import argparse
import json
from dataclasses import replace
from typing import Any

import torch

from cifar_sweep.cli.options import settings_of
from cifar_sweep.config import TrialConfig, derive_seed
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.sweep.file import find, load
from cifar_sweep.training import batches
from cifar_sweep.training.device import device_name, prepare_process, resolve_device, resolve_precision
from cifar_sweep.training.images import data
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import Run


def test_set_as_validation(images: ImageData) -> ImageData:
    """Images whose training part is all of the training images, and whose validation part is the test set."""
    joined = replace(
        images,
        train_images=torch.cat([images.train_images, images.test_images]),
        train_labels=torch.cat([images.train_labels, images.test_labels]),
    )
    train, every = len(images.train_labels), len(joined.train_labels)
    batches.split = lambda _labels: (torch.arange(train), torch.arange(train, every))
    return joined


def measure(params: dict[str, Any], images: ImageData, device: torch.device, precision: str, seed: int) -> list[float]:
    """Test accuracy (a fraction) after each epoch."""
    config = TrialConfig.from_params(
        params,
        classes=len(images.classes),
        precision=precision,
        data_seed=derive_seed(seed, "data"),
        seed=derive_seed(seed, "trial", 0),
    )
    run = Run([config], images, device=device)
    return [run.epoch()[0].validation_accuracy for _ in range(config.shape.epochs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", required=True)
    parser.add_argument("--data", default="auto")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sweep = load(find("reports"), only=options.only.split(","))
    device = resolve_device("auto")
    threads = prepare_process(device, threads=options.threads)
    precision, _ = resolve_precision(device)
    images = test_set_as_validation(data.load(options.data))
    rows = []
    for point in sweep.enqueue:
        params = sweep.fixed | point.params() | settings_of(options.settings)
        for seed in range(options.seeds):
            curve = measure(params, images, device, precision, seed)
            row = {"label": point.label, "claimed": point.claimed, "seed": seed, "best": max(curve), "last": curve[-1]}
            rows.append(row | {"settings": options.settings})
            if not options.json:
                print(f"{point.label} {' '.join(options.settings)} seed {seed}: best {max(curve):.2%} "
                      f"(epoch {curve.index(max(curve)) + 1}), last {curve[-1]:.2%}, claimed {point.claimed} %",
                      flush=True)  # fmt: skip
    if options.json:
        where = {"data": images.name, "device": device_name(device), "threads": threads, "commit": commit()}
        print(json.dumps({"rows": rows, **where, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
