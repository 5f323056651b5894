"""Report B's eleven hand settings against a search over B's space, at the same cost, on a common shortened scale.

Every hand run is trained on 10,000 of the training images, for a tenth of its epochs (rounded up), with StepLR's step a
tenth as long. A search then spends the same number of epochs on as many images: TPE with successive halving over the
learning rate, optimizer, dropout, batch norm, activation and gamma that B explored, at B's batch of 16, up to 10 epochs
a trial, with B's points not given to it; under several seeds. Compared are validation accuracies: the best of each.

    python benchmarks/search_against_hand.py [--data FOLDER] [--out FOLDER] [--seeds 3] [--json]

The studies stay in the folder: the same command goes on where it was stopped.
"""

import argparse
import json
import math
import multiprocessing
import time
from functools import partial
from pathlib import Path
from typing import Any

from cifar_sweep.study import opening as studies
from cifar_sweep.study.record import STATE_NAMES
from cifar_sweep.study.storage import open_existing, open_storage
from cifar_sweep.sweep.file import find, load
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.training.device import available_cores
from cifar_sweep.training.images import data as images
from cifar_sweep.work.submit import facts
from cifar_sweep.work.worker import Job, work

SHORTER = 10
SEARCH = {
    "sampler": "tpe",
    "pruner": {"name": "asha", "min_steps": 1, "reduction_factor": 3},
    "trials": 10_000,  # the epochs are the budget
    "space": {
        "learning_rate": {"low": 1e-5, "high": 0.1, "log": True},
        "optimizer": {"choices": ["sgd", "adam"]},
        "dropout": {"low": 0.0, "high": 0.5},
        "batch_norm": {"choices": [False, True]},
        "activation": {"choices": ["relu", "leaky_relu"]},
        "gamma": {"low": 0.1, "high": 1.0},
    },
}


def hand_sweep(train_images: int) -> Sweep:
    """B's runs of `reports`, shortened."""
    raw = load(find("reports")).model_dump(mode="json", exclude_none=True)
    raw["fixed"] |= {"step_size": 20 // SHORTER, "train_images": train_images}
    del raw["space"]["train_images"]
    raw["ensemble"] = []
    raw["enqueue"] = [
        point | {"epochs": math.ceil(point["epochs"] / SHORTER), "whole": {"epochs": point["epochs"]}}
        for point in raw["enqueue"]
        if point["label"].startswith("B-")
    ]
    return parse(raw | {"name": "hand"}, where="hand")


def search_sweep(seed: int, train_images: int) -> Sweep:
    """A search over B's space."""
    fixed = {
        "model": "cnn3",
        "batch_size": 16,
        "step_size": 20 // SHORTER,
        "epochs": 10,
        "train_images": train_images,
    }
    return parse({"name": f"search-{seed}", "seed": seed, "fixed": fixed, **SEARCH}, where="search")


def epochs_spent(study: studies.SweepStudy) -> int:
    """Epochs trained over all trials, the unfinished ones included."""
    return sum(len(trial.user_attrs.get("curve", [])) for trial in study.trials())


def drive(name: str, epochs: int, job: Job) -> None:
    """Work on a study until it is done or has spent its epochs."""
    study = studies.load(open_existing(job.storage), name)
    last, over = 0.0, False

    def spent() -> bool:
        nonlocal last, over
        if not over and time.monotonic() - last >= 0.5:  # asked before every step
            last = time.monotonic()
            over = epochs_spent(study) >= epochs
        return over

    work(job, stop=spent)


def result(study: studies.SweepStudy) -> dict[str, Any]:
    """The best trial that was trained to its end, and what it took."""
    best = study.ranked()[0].described()
    trials = study.trials()
    return {
        "study": study.name,
        "best_validation_accuracy": best["value"],
        "best": best["params"],
        "epochs": epochs_spent(study),
        "trials": {name: sum(STATE_NAMES[t.state] == name for t in trials) for name in ("complete", "pruned")},
        "seconds": sum(point["seconds"] for trial in trials for point in trial.user_attrs.get("curve", [])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="auto")
    parser.add_argument("--out", type=Path, default=Path("search_against_hand"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-images", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    address = f"sqlite:///{options.out.absolute()}/studies.db"
    storage = open_storage(address)
    loaded = images.load(options.data)
    hand = hand_sweep(options.train_images)
    total = sum(int(point.params()["epochs"]) for point in hand.enqueue)
    sweeps = [hand, *(search_sweep(seed, options.train_images) for seed in range(options.seeds))]
    tasks = []
    for sweep in sweeps:
        studies.open_or_resume(storage, sweep.name, sweep, data=facts(loaded, source=options.data))
        job = Job(address, (sweep.name,), data=options.data, artifacts=str(options.out / "artifacts"), threads=1)
        tasks.append(partial(drive, sweep.name, total, job))
    with multiprocessing.get_context("spawn").Pool(min(available_cores(), len(tasks)), maxtasksperchild=1) as pool:
        for pending in [pool.apply_async(task) for task in tasks]:
            pending.get()
    by_hand = studies.load(storage, "hand")
    report = {
        "data": loaded.name,
        "shortened": f"{options.train_images} training images, a tenth of the epochs",
        "epochs": total,
        "hand": [
            {
                "label": trial.user_attrs["label"],
                "epochs": len(trial.user_attrs["curve"]),
                "validation_accuracy": trial.value,
            }
            for trial in by_hand.trials()
        ],
        "best": [result(studies.load(storage, sweep.name)) for sweep in sweeps],
        "commit": studies.commit(),
        "versions": studies.versions(),
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{loaded.name}, shortened: {report['shortened']}; {total} epochs each")
    for row in report["hand"]:
        print(f"{row['label']}: {row['epochs']} epochs, validation {row['validation_accuracy']:.2%}")
    for row in report["best"]:
        print(f"{row['study']}: best validation {row['best_validation_accuracy']:.2%}, {row['epochs']} epochs, "
              f"{row['trials']}, {row['best']}")  # fmt: skip


if __name__ == "__main__":
    main()
