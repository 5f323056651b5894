"""Train the tables of curves in `benchmarks/curves/`, which `benchmarks/replay.py` searches in seconds.

    python benchmarks/train_curves.py --data FOLDER --out WORK [--tables joint lr_batch] [--workers 2]
    python benchmarks/train_curves.py --data FOLDER --out WORK --pack benchmarks/curves

A table is a space and settings in it, each trained once and some under three seeds. Trials of one shape train as one
fused group. Each group's result is a file in WORK: the script goes on where it was stopped. The settings are drawn
before anything is trained; those that get two more seeds are the best ones after one seed, and some others by lot.
The format of a table is written in `benchmarks/curves/README.md`.
"""

import argparse
import base64
import gzip
import itertools
import json
import math
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifar_sweep.config import TrialConfig, derive_seed
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.training.device import prepare_process
from cifar_sweep.training.images import data as images
from cifar_sweep.training.train import Run

LANES = 8  # members of a group: the compiled kernels are full
SIZES = {"batch_size": {"low": 16, "high": 256, "base2": True}}
RATE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}}
SHORT = {"epochs": 12, "train_images": 10_000, "validation_images": 5_000}
NORMED = {"activation": "leaky_relu", "batch_norm": True}


@dataclass(frozen=True)
class Table:
    """A space, what is held in it, and how many settings are drawn.

    Attributes:
        fixed: settings of all trials.
        space: what is searched, as in a sweep's file.
        shapes: the values that shape parameters take together.
        each: settings drawn in each shape.
        best, others: how many settings get two more seeds: the best ones, and others by lot.
        classes: how many of the data's classes are used; None is all.
    """

    fixed: Mapping[str, Any]
    space: Mapping[str, Any]
    shapes: Mapping[str, Sequence[Any]]
    each: int
    best: int
    others: int
    classes: int | None = None


JOINT = {
    "fixed": {"model": "convnet", "activation": "leaky_relu", **SHORT},
    "space": {
        "optimizer": {"choices": ["sgd", "adam", "rmsprop"]},
        "batch_norm": {"choices": [False, True]},
        **SIZES,
        **RATE,
        "momentum": {"low": 0.0, "high": 0.9},
        "dropout": {"low": 0.0, "high": 0.5},
        "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
        "step_size": {"low": 2, "high": 8},
        "gamma": {"low": 0.1, "high": 1.0},
    },
    "shapes": {
        "optimizer": ["sgd", "adam", "rmsprop"],
        "batch_norm": [False, True],
        "batch_size": [16, 32, 64, 128, 256],
    },
}  # fmt: skip
TABLES = {
    "joint": Table(**JOINT, each=8, best=48, others=16),
    "lr_batch": Table(
        {"model": "convnet", "optimizer": "adam", "dropout": 0.2, "step_size": 8, "gamma": 0.2, **NORMED}
        | SHORT,
        {**RATE, **SIZES},
        {"batch_size": [16, 32, 64, 128, 256]},
        each=16, best=12, others=4,
    ),
    "schedule": Table(
        {"model": "convnet", "optimizer": "adam", "dropout": 0.2, "batch_size": 64, **NORMED}
        | {"train_images": 10_000, "validation_images": 5_000},
        RATE
        | {"epochs": {"choices": [4, 8, 16, 32]}}
        | {"step_size": {"low": 2, "high": 16}, "gamma": {"low": 0.1, "high": 1.0}},
        {"epochs": [4, 8, 16, 32]},
        each=16, best=12, others=4,
    ),
    "cnn3": Table(
        {"model": "cnn3", "optimizer": "adam", "dropout": 0.2, "step_size": 8, "gamma": 0.2, **NORMED}
        | {"norm_position": "after_activation", **SHORT},
        {**RATE, **SIZES},
        {"batch_size": [16, 32, 64, 128, 256]},
        each=12, best=12, others=4,
    ),
    "five": Table(
        JOINT["fixed"] | {"train_images": 5_000, "validation_images": 2_500, "activation": "tanh"},
        JOINT["space"] | {"batch_size": {"choices": [16, 64, 256]}},
        JOINT["shapes"] | {"batch_size": [16, 64, 256]},
        each=8, best=24, others=8, classes=5,
    ),
}  # fmt: skip


def settings(name: str) -> list[dict[str, Any]]:
    """The table's settings: in each shape a Latin hypercube over what is no shape parameter."""
    table, drawn = TABLES[name], []
    for values in itertools.product(*table.shapes.values()):
        shape = dict(zip(table.shapes, values, strict=True))
        generator = np.random.default_rng(derive_seed(0, "settings", name, str(values)))
        knobs = {knob: domain for knob, domain in table.space.items() if knob not in table.shapes}
        columns = {
            knob: [_at(domain, (k + u) / table.each) for k, u in zip(
                generator.permutation(table.each), generator.random(table.each), strict=True)]
            for knob, domain in knobs.items()
        }  # fmt: skip
        drawn += [shape | {knob: column[k] for knob, column in columns.items()} for k in range(table.each)]
    return drawn


def _at(domain: Mapping[str, Any], share: float) -> Any:
    low, high = domain["low"], domain["high"]
    if domain.get("log"):
        return float(f"{math.exp(math.log(low) + share * math.log(high / low)):.6g}")
    if isinstance(low, int):
        return low + int(share * (high - low + 1))
    return float(f"{low + share * (high - low):.6g}")


def config(
    table: Table, params: Mapping[str, Any], *, classes: int, precision: str, setting: int, seed: int
) -> TrialConfig:
    return TrialConfig.from_params(
        dict(table.fixed) | dict(params),
        classes=classes,
        precision=precision,
        data_seed=derive_seed(0, "data"),
        seed=derive_seed(0, "curves", setting, seed),
    )


@dataclass(frozen=True)
class Job:
    """A group to train: settings of one shape with their seeds."""

    table: str
    members: tuple[tuple[int, int], ...]  # (setting, seed)

    @property
    def file(self) -> str:
        return f"{self.table}-" + "-".join(f"{setting}s{seed}" for setting, seed in self.members) + ".json"


def first_jobs(name: str) -> list[Job]:
    """Every setting once."""
    each, count = TABLES[name].each, len(settings(name))
    bounds = [
        (at, min(at + LANES, start + each))
        for start in range(0, count, each)
        for at in range(start, start + each, LANES)
    ]
    return [Job(name, tuple((k, 0) for k in range(*bound))) for bound in bounds]


def seed_jobs(name: str, out: Path) -> list[Job]:
    """Two more seeds for the best settings and for some by lot."""
    table, drawn = TABLES[name], settings(name)
    rows = {row["setting"]: row for job in first_jobs(name) for row in read(out / job.file)}
    best = sorted(rows, key=lambda k: -max(rows[k]["validation_accuracy"], default=0.0))
    lot = np.random.default_rng(derive_seed(0, "lot", name)).permutation(best[table.best :])
    by_shape: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for k in sorted([*best[: table.best], *(int(k) for k in lot[: table.others])]):
        by_shape.setdefault(tuple(drawn[k][name] for name in table.shapes), []).extend([(k, 1), (k, 2)])
    return [
        Job(name, tuple(members[at : at + LANES]))
        for members in by_shape.values()
        for at in range(0, len(members), LANES)
    ]


def train(job: Job, data: images.ImageData, precision: str) -> list[dict[str, Any]]:
    """The rows of a group."""
    table, drawn = TABLES[job.table], settings(job.table)
    classes = len(data.classes)
    configs = [
        config(table, drawn[k], classes=classes, precision=precision, setting=k, seed=seed) for k, seed in job.members
    ]
    run = Run(configs, data, device=torch.device("cpu"))
    for _ in range(run.shape.epochs):
        run.epoch()
    shown = [next((n for n, r in enumerate(m.history) if r.diverged), len(m.history)) for m in run.members]
    curves = [member.history[:n] for member, n in zip(run.members, shown, strict=True)]
    # The best weights of all members, validated again and tested, as one network.
    usable = [k for k, member in enumerate(run.members) if member.best_weights]
    for k in usable:
        run.network.load_member_state(k, run.members[k].best_weights)
    validated, tested = (correct(run, batches) for batches in (run.batches.validation(), run.batches.test()))
    rows = []
    for k, (setting, seed) in enumerate(job.members):
        curve = curves[k]
        row: dict[str, Any] = {"setting": setting, "seed": seed, "params": drawn[setting]}
        row["validation_accuracy"] = [round(result.validation_accuracy, 5) for result in curve]
        row["validation_loss"] = [round(result.validation_loss, 5) for result in curve]
        row["seconds"] = [round(result.seconds, 3) for result in curve]
        row["diverged"] = len(curve) < run.shape.epochs
        if curve and k in usable:
            row["test_accuracy"] = round(float(tested[k].mean()), 5)
            row["correct"] = base64.b64encode(np.packbits(validated[k])).decode()
        rows.append(row)
    return rows


def correct(run: Run, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
    """Which images each member names rightly [K, images], of its present weights."""
    run.network.eval()
    found = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=run.shape.precision == "bf16"):
        for batch, labels in batches:
            found.append((run.network(batch).argmax(dim=2) == labels).numpy())
    return np.concatenate(found, axis=1)


def few_classes(folder: str, count: int, at: Path) -> Path:
    """The first `count` classes of an image folder, as links."""
    for part in ("train", "test"):
        (at / part).mkdir(parents=True)
        for each in sorted(entry for entry in Path(folder, part).iterdir() if entry.is_dir())[:count]:
            (at / part / each.name).symlink_to(each.resolve())
    return at


def work(queue: Any, options: argparse.Namespace) -> None:
    """Train what the queue has, on one thread."""
    prepare_process(torch.device("cpu"), threads=1)
    os.nice(options.nice)
    data: dict[int | None, images.ImageData] = {}
    while (job := queue.get()) is not None:
        classes = TABLES[job.table].classes
        if classes not in data:
            with tempfile.TemporaryDirectory() as at:
                source = (
                    options.data if classes is None else str(few_classes(options.data, classes, Path(at) / "images"))
                )
                data[classes] = images.load(source)
        rows = train(job, data[classes], options.precision)
        part = options.out / (job.file + f".{os.getpid()}")
        part.write_text(
            json.dumps({"fingerprint": data[classes].fingerprint, "data": data[classes].name, "rows": rows})
        )
        part.rename(options.out / job.file)
        best = max((max(row["validation_accuracy"], default=0.0) for row in rows), default=0.0)
        print(f"{job.table}: {len(rows)} trials, best {best:.2%}", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["rows"])


def run_all(jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """Train the jobs that are not done yet."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    left = [job for job in jobs if not (options.out / job.file).exists()]
    print(f"{len(left)} of {len(jobs)} groups to train", flush=True)
    for job in [*left, *([None] * options.workers)]:
        queue.put(job)
    workers = [context.Process(target=work, args=(queue, options)) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed; run the same command again to go on")


def pack(name: str, options: argparse.Namespace) -> None:
    """Write a table from its groups' files."""
    table, jobs = TABLES[name], [*first_jobs(name), *seed_jobs(name, options.out)]
    about = json.loads((options.out / jobs[0].file).read_text())
    rows = sorted(
        (row for job in jobs for row in read(options.out / job.file)), key=lambda row: (row["setting"], row["seed"])
    )
    whole = {
        "format": 1,
        "name": name,
        "data": about["data"],
        "fingerprint": about["fingerprint"],
        "classes": table.classes or 10,
        "fixed": dict(table.fixed),
        "space": dict(table.space),
        "precision": options.precision,
        "commit": commit(),
        "versions": versions(),
        "rows": rows,
    }
    path = options.pack / f"{name}.json.gz"
    path.write_bytes(gzip.compress(json.dumps(whole).encode(), mtime=0))
    print(f"{path}: {len(rows)} curves, {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--out", type=Path, required=True, help="where the groups' results go")
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--pack", type=Path, help="write the tables into this folder; trains nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.pack:
        options.pack.mkdir(parents=True, exist_ok=True)
        for name in options.tables:
            pack(name, options)
        return
    run_all([job for name in options.tables for job in first_jobs(name)], options)
    run_all([job for name in options.tables for job in seed_jobs(name, options.out)], options)


if __name__ == "__main__":
    main()
