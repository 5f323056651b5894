"""How full the groups of a sweep are: python benchmarks/full_groups.py sweeps/examples/course_cnn.toml

The product's own claiming, with workers that take turns and finish at once, in a database of its own; nothing is
trained, and values are random, so that this is how groups form, not how good the search is.

    python benchmarks/full_groups.py sweeps/examples/course_cnn.toml --data FOLDER --epochs 2 --images 2000 --trials 16

With `--data` the sweep is run besides, as it groups its trials and one by one, in turns: training images a second of
the whole command, start-up included.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import optuna

from cifar_sweep.study.claim import Worker
from cifar_sweep.study.opening import load_all, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import open_storage
from cifar_sweep.sweep.file import load
from cifar_sweep.sweep.sweep import Sweep

DATA = {"name": "none", "fingerprint": "0", "classes": 10}


def group_sizes(sweep: Sweep, *, workers: int, size: int, seed: int) -> list[int]:
    """The size of the group that each trial was claimed in."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(f"sqlite:///{folder}/studies.db")
        study = open_or_resume(storage, sweep.name, sweep.model_copy(update={"seed": seed}), data=DATA)
        holders = [
            Worker(Owner(**asdict(Owner.current()) | {"token": f"{k}"}), "cpu", 1, "fp32") for k in range(workers)
        ]
        found: list[int] = []
        while True:
            groups = [study.claim(holder, size=lambda _: size, workers=workers) for holder in holders]
            if not any(groups):
                return found
            for claims in groups:
                found += [len(claims)] * len(claims)
                for claim in claims:
                    study.complete(claim, generator.random())


def images_a_second(asked: argparse.Namespace, *, group: str, seed: int) -> float:
    """Of a run of the sweep as a command: the images that its trials were trained on, by its wall seconds."""
    with tempfile.TemporaryDirectory() as folder:
        url, small = (
            f"sqlite:///{folder}/studies.db",
            ["--epochs", str(asked.epochs), "--train-images", str(asked.images)],
        )
        command = [sys.executable, "-m", "cifar_sweep", "run", str(asked.sweep), "--data", asked.data, "--storage", url]
        command += ["--artifacts", f"{folder}/artifacts", "--group", group, "--seed", str(seed), *small]
        began = time.monotonic()
        subprocess.run([*command, "--trials", str(asked.trials)], check=True, capture_output=True)
        seconds = time.monotonic() - began
        trials = load_all(open_storage(url))[0].trials()
        return sum(trial.epochs_done * trial.config.shape.train_images for trial in trials if trial.config) / seconds


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--group", type=int, default=8, help="the most that a group may have")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--data", help="train, too: images as `run` takes them")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3, help="of each kind")
    asked = parser.parse_args()
    sweep = load(asked.sweep)
    each = [group_sizes(sweep, workers=asked.workers, size=asked.group, seed=seed) for seed in range(asked.repeats)]
    means = [statistics.fmean(sizes) for sizes in each]
    alone = [sum(size == 1 for size in sizes) / len(sizes) for sizes in each]
    quartiles = statistics.quantiles(means, n=4)
    words = f"{sweep.name}: {sweep.size} trials, {asked.workers} workers, groups of up to {asked.group}"
    print(f"{words}, {asked.repeats} studies, values random")
    print(f"mean group of a trial: median {quartiles[1]:.2f} ({quartiles[0]:.2f} to {quartiles[2]:.2f})")
    print(f"trials that train alone: median {100 * statistics.median(alone):.0f} %")
    if not asked.data:
        return
    ratios = []
    for seed in range(asked.runs):
        grouped, single = (images_a_second(asked, group=group, seed=seed) for group in ("auto", "1"))
        ratios.append(grouped / single)
        print(f"seed {seed}: {grouped:,.0f} images/s in groups, {single:,.0f} one by one: {ratios[-1]:.2f}", flush=True)
    print(f"median of {asked.runs}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
