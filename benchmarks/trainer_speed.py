"""How many images per second the trainer takes, against a plain loop as the reports wrote it, side by side.

The plain loop: torchvision's PIL images through ToTensor in a DataLoader, float32, the default optimizer, ``.item()``
each step. Both train the same network on the same images on as many threads, each in a process of its own that waits
while the other works; they take turns, the ratio of each turn is taken, then the median. Validation is in neither.

    python benchmarks/trainer_speed.py [--data FOLDER] [--repeats 7] [--json]
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifar_sweep.config import TrialConfig
from cifar_sweep.search.study import commit, versions
from cifar_sweep.training import data
from cifar_sweep.training.device import available_cores, device_name, prepare_process, resolve_device, resolve_precision
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
    run.group.start_epoch(1)
    started = time.perf_counter()
    for inputs, labels in run.batches.train(config.shape.batch_size, seed=0, epoch=1):
        run.group.step(inputs, labels)
    run.group.train_figures(count)  # waits for the device
    return count / (time.perf_counter() - started)


def plain_process(connection: Connection, source: str, device: torch.device, threads: int) -> None:
    """Answers each config with the plain loop's rate. Sets the threads and nothing else, as a plain script would."""
    torch.set_num_threads(threads)
    answer(connection, plain_rate, data.load(source), device)


def our_process(connection: Connection, source: str, device: torch.device, threads: int) -> None:
    """Answers each config with our loop's rate."""
    prepare_process(device, threads=threads)
    answer(connection, our_rate, data.load(source), device)


def answer(connection: Connection, rate: Callable[..., float], images: data.ImageData, device: torch.device) -> None:
    while (config := connection.recv()) is not None:
        connection.send(rate(config, images, device, config.shape.train_images))


def measure(params: dict[str, object], batch_size: int, sides: list[Connection], arguments: argparse.Namespace) -> dict:
    """One row: medians over the repeats, and the spread of the ratio."""
    precision, _ = resolve_precision(resolve_device(arguments.device))
    settings = params | {"batch_size": batch_size, "train_images": 2048 if batch_size < 64 else 6144}
    config = TrialConfig.from_params(settings, classes=10, precision=precision, data_seed=0, seed=0)
    pairs = []
    for turn in range(arguments.repeats + 1):
        pair = []
        for side in sides:
            side.send(config)
            pair.append(side.recv())
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
    threads = arguments.threads or available_cores()
    images = data.load(arguments.data)
    sides = []
    for target in (plain_process, our_process):
        mine, theirs = multiprocessing.Pipe()
        arguments_of_side = (theirs, arguments.data, device, threads)
        multiprocessing.get_context("spawn").Process(target=target, args=arguments_of_side, daemon=True).start()
        theirs.close()  # so that a side that ends is noticed
        sides.append(mine)
    where = f"{device.type} ({device_name(device)}), {threads} threads, {platform.system()}"
    rows = []
    for name, params in SETTINGS.items():
        for batch_size in BATCH_SIZES:
            rows.append({"model": name} | measure(params, batch_size, sides, arguments))
            if not arguments.json:
                row = rows[-1]
                print(
                    f"{name}, batch {batch_size}: plain {row['plain_images_per_second']:,} images/s, ours "
                    f"{row['images_per_second']:,} ({row['precision']}): {row['ratio']} times "
                    f"({row['ratio_min']} to {row['ratio_max']}, n = {arguments.repeats})",
                    flush=True,
                )
    for side in sides:
        side.send(None)
    if arguments.json:
        environment = versions() | {"device": where, "commit": commit(), "data": images.name}
        print(json.dumps({"rows": rows, "repeats": arguments.repeats, "environment": environment}, indent=2))
    else:
        print(f"{where}; {versions()}; commit {commit()}; {images.name}")


if __name__ == "__main__":
    main()
