"""How many images per second the trainer takes, against a plain loop as the reports wrote it, side by side.

The plain loop: torchvision's PIL images through ToTensor in a DataLoader, float32, the default optimizer, ``.item()``
each step. Both train the same network on the same images in one process on the same threads, one after the other in
turn; the ratio of each turn is taken, then the median. Validation is in neither.

    python benchmarks/trainer_speed.py [--data FOLDER] [--repeats 7] [--json]
"""

import argparse
import json
import platform
import statistics
import time

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifar_sweep.config import TrialConfig
from cifar_sweep.search.study import commit, versions
from cifar_sweep.training import data
from cifar_sweep.training.device import device_name, resolve_device, resolve_precision, set_threads
from cifar_sweep.training.models import build
from cifar_sweep.training.train import Run

SETTINGS = {
    "cnn3 as in B-009": {
        "model": "cnn3",
        "activation": "leaky_relu",
        "batch_norm": True,
        "dropout": 0.2,
        "optimizer": "adam",
    },
    "cnn3 as in B-001": {"model": "cnn3", "optimizer": "sgd"},
}
BATCH_SIZES = (16, 128)


class PilImages(Dataset):
    """Images as torchvision's CIFAR10 hands them out: a PIL image made from an array, then ToTensor."""

    def __init__(self, images: data.ImageData, count: int) -> None:
        self.pixels = images.train_images[:count].numpy()
        self.labels = images.train_labels[:count].tolist()
        self.transform = transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def plain_rate(config: TrialConfig, images: data.ImageData, device: torch.device, count: int) -> float:
    """Images per second of one epoch of the plain loop."""
    network = build(config.shape, seed=0).to(device).train()
    for layer in network:
        if isinstance(layer, (nn.Dropout, nn.Dropout2d)):
            layer.p = config.knobs.dropout
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer = kinds[config.shape.optimizer](network.parameters(), lr=config.knobs.learning_rate)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(PilImages(images, count), batch_size=config.shape.batch_size, shuffle=True)
    started = time.perf_counter()
    running_loss = 0.0
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = criterion(network(inputs.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return count / (time.perf_counter() - started)


def our_rate(config: TrialConfig, images: data.ImageData, device: torch.device, count: int) -> float:
    """Images per second of one epoch of the project's loop, until the device has finished."""
    run = Run([config], images, device=device)
    [member] = run.members
    member.start_epoch(1)
    started = time.perf_counter()
    for inputs, labels in run.batches.train(config.shape.batch_size, seed=0, epoch=1):
        member.step(inputs, labels)
    member.loss_sum.item()
    return count / (time.perf_counter() - started)


def measure(params: dict[str, object], batch_size: int, images: data.ImageData, arguments: argparse.Namespace) -> dict:
    """One row: medians over the repeats, and the spread of the ratio."""
    device = resolve_device(arguments.device)
    precision, _ = resolve_precision(device)
    count = 2048 if batch_size < 64 else 6144
    settings = params | {"batch_size": batch_size, "train_images": count}
    config = TrialConfig.from_params(settings, classes=len(images.classes), precision=precision, data_seed=0, seed=0)
    pairs = []
    for turn in range(arguments.repeats + 1):
        pair = [rate(config, images, device, count) for rate in (plain_rate, our_rate)]
        if turn:  # the first turn warms both up
            pairs.append(pair)
    ratios = [ours / plain for plain, ours in pairs]
    return {
        "batch_size": batch_size,
        "plain_images_per_second": round(statistics.median(plain for plain, _ in pairs)),
        "images_per_second": round(statistics.median(ours for _, ours in pairs)),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "precision": precision,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic:10000", help="as cifar-sweep's --data")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads for both; 0 is one per core")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    threads = set_threads(arguments.threads, device=device)
    images = data.load(arguments.data)
    where = f"{device.type} ({device_name(device)}), {threads} threads, {platform.system()}"
    rows = []
    for name, params in SETTINGS.items():
        for batch_size in BATCH_SIZES:
            rows.append({"model": name} | measure(params, batch_size, images, arguments))
            if not arguments.json:
                row = rows[-1]
                print(
                    f"{name}, batch {batch_size}: plain {row['plain_images_per_second']:,} images/s, ours "
                    f"{row['images_per_second']:,} ({row['precision']}): {row['ratio']} times "
                    f"({row['ratio_min']} to {row['ratio_max']}, n = {arguments.repeats})",
                    flush=True,
                )
    if arguments.json:
        environment = versions() | {"device": where, "commit": commit(), "data": images.name}
        print(json.dumps({"rows": rows, "repeats": arguments.repeats, "environment": environment}, indent=2))
    else:
        print(f"{where}; {versions()}; commit {commit()}; {images.name}")


if __name__ == "__main__":
    main()
