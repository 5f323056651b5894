"""The training loop of the reports, as a student writes it; both peers train with it, one trial at a time per process.

PIL images through ToTensor in a DataLoader, float32, Adam, the loss and the right answers counted with ``.item()`` each
step, one pass over the validation images after each epoch. By itself it prints its images per second:

    python benchmarks/peers/plain_loop.py [--batch-size 16] [--train-images 2000] [--epochs 2] [--loader-workers 0]

Two of them started together show the rate beside a second trial, as in a sweep.
"""

import argparse
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifar_sweep.config import TrialConfig
from cifar_sweep.machine.bench import PilImages, PlainTraining
from cifar_sweep.training.device import available_cores
from cifar_sweep.training.images import data as images
from cifar_sweep.training.images.split import split

AT_ONCE = 2
# Two loader processes lose on 2 cores, where a second trial has the other core: images/s of each of two trials at once,
# validation in it, with 0 and with 2 of them: 3,040 to 3,340 and 1,960 to 2,310 at batch 16, 3,460 to 3,700 and 2,260
# to 2,760 at batch 32 (epochs after the first, two runs of two; torch 2.15.0).
LOADER_WORKERS = 0


@cache
def datasets(source: str, train_images: int) -> tuple[PilImages, PilImages, int]:
    """The training and the validation images that cifar-sweep would take, once per process, and how many classes."""
    data = images.load(source)
    train_index, validation_index = split(data.train_labels)
    train_set, validation_set = (
        PilImages(data.train_images[index], data.train_labels[index])
        for index in (train_index[:train_images], validation_index)
    )
    return train_set, validation_set, len(data.classes)


def train(
    lr: float,
    batch_size: int,
    *,
    data: str,
    epochs: int,
    train_images: int,
    report: Callable[[int, float], None],
    loader_workers: int = LOADER_WORKERS,
) -> float:
    """Train once; `report` gets each epoch's number and validation accuracy. Returns the best of these accuracies."""
    torch.set_num_threads(max(1, available_cores() // AT_ONCE))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_set, validation_set, classes = datasets(data, train_images)
    options = {"num_workers": loader_workers, "persistent_workers": loader_workers > 0}
    train_loader = DataLoader(train_set, batch_size=batch_size, shuffle=True, **options)
    validation_loader = DataLoader(validation_set, batch_size=200, **options)
    params = {"model": "convnet", "learning_rate": lr}
    config = TrialConfig.from_params(params, classes=classes, precision="fp32", data_seed=0, seed=0)
    training = PlainTraining(config, device=device)
    best = 0.0
    for epoch in range(1, epochs + 1):
        training.network.train()
        for inputs, labels in train_loader:
            training.step(inputs, labels)
        accuracy = validate(training.network, validation_loader, device)
        best = max(best, accuracy)
        report(epoch, accuracy)
    return best


def validate(network: nn.Module, loader: DataLoader[tuple[Tensor, int]], device: torch.device) -> float:
    """The share of images that the network names right."""
    network.eval()
    right, seen = 0, 0
    with torch.no_grad():
        for inputs, labels in loader:
            right += (network(inputs.to(device)).argmax(dim=1) == labels.to(device)).sum().item()
            seen += len(labels)
    return right / seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic:12500", help="as cifar-sweep's --data")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--train-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--loader-workers", type=int, default=LOADER_WORKERS)
    options = parser.parse_args()
    datasets(options.data, options.train_images)
    ended = [time.perf_counter()]
    train(
        1e-3,
        options.batch_size,
        data=options.data,
        epochs=options.epochs,
        train_images=options.train_images,
        report=lambda _epoch, _accuracy: ended.append(time.perf_counter()),
        loader_workers=options.loader_workers,
    )
    for epoch, (begin, end) in enumerate(pairwise(ended), start=1):
        print(f"epoch {epoch}: {options.train_images / (end - begin):.0f} images/s, validation in it", flush=True)


if __name__ == "__main__":
    main()
