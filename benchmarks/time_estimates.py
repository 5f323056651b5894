"""Does `plan` say how long a sweep takes, and does the range in the live view hold its end?

Sweeps of about a minute, with and without pruning, of one network and of several, each with its own seed. Before each,
`cifar-sweep plan` is asked; while it runs, the range of the time left is read from its database every two seconds, as
the live view does; then its real end is set against both. What a run is compared with is the same whole command: `plan`
counts from the command to its end.

    python benchmarks/time_estimates.py [--runs 10] [--data synthetic:4000] [--workers 2] [--json FILE]
    python benchmarks/time_estimates.py --files sweeps/examples/*.toml --data synthetic:2000

A plan is held against the figure that is like the run: of a run without a pruner the one without pruning, of one with a
pruner the one with it. Sweeps of files of one's own run once each, with their own pruner and 8 trials, for as many
epochs (1, 2, 4 and so on) as `plan` says take a minute.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from cifar_sweep.errors import CifarSweepError
from cifar_sweep.forecast.time_left import seconds_left
from cifar_sweep.study.opening import load
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.study.storage import open_existing
from cifar_sweep.sweep.file import find

SAMPLE_SECONDS = 2.0
MOMENTS = (0.25, 0.5, 0.75)
FILE_TRIALS = 8
FILE_SECONDS = 60.0
RATE = "learning_rate = { low = 1e-4, high = 3e-2, log = true }"
BATCH = "batch_size = { low = 16, high = 256, base2 = true }"
# The sweep's file, and what makes it a minute on 2 cores.
SWEEPS = {
    "lr_batch": (None, ["--trials", "16", "--epochs", "5", "--train-images", "1500"]),
    "knobs": (f"[fixed]\nmodel = 'convnet'\nbatch_size = 32\nepochs = 8\n[space]\n{RATE}\n", ["--trials", "32"]),
    "shapes": (f"[fixed]\nmodel = 'convnet'\nepochs = 6\n[space]\n{RATE}\n{BATCH}\n", ["--trials", "24"]),
    "networks": (
        f"[fixed]\nepochs = 4\ntrain_images = 1500\n[space]\nmodel = {{ choices = ['lenet', 'convnet', 'cnn3'] }}\n"
        f"{RATE}\n{BATCH}\n",
        ["--trials", "20"],
    ),
    "schedule": (
        f"[fixed]\nmodel = 'convnet'\nbatch_size = 64\n[space]\nepochs = {{ low = 3, high = 12 }}\n{RATE}\n",
        ["--trials", "24"],
    ),
}


def command(*arguments: str) -> list[str]:
    """The command line, as a process of its own."""
    return [sys.executable, "-m", "cifar_sweep", *arguments]


def planned(options: list[str]) -> dict[str, Any]:
    """What `plan` says."""
    answer = subprocess.run(command("plan", *options, "--json"), capture_output=True, text=True, check=True)
    return dict(json.loads(answer.stdout))


def watched(options: list[str], url: str, out: Path) -> tuple[float, list[dict[str, float]]]:
    """Run a sweep. Returns how long the command took, and the ranges of the time left, with when they were said."""
    begun = time.monotonic()
    with out.open("w") as log, subprocess.Popen(command("run", *options, "--storage", url), stdout=log) as process:
        samples = []
        while not is_over(process, SAMPLE_SECONDS):
            try:
                with closing(open_existing(url)) as storage:
                    left = seconds_left(load(storage), starting=True)
            except CifarSweepError:  # there is no study yet
                continue
            now = time.monotonic() - begun
            if left is not None and process.poll() is None:
                samples.append({"at": round(now, 2), "low": round(left[0], 2), "high": round(left[1], 2)})
        seconds = time.monotonic() - begun
        if process.returncode:
            sys.exit(f"run {' '.join(options)} ended with {process.returncode}; see {out}")
    return seconds, samples


def is_over(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends within so many seconds; it is not waited for any longer."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def measure(name: str, *, seed: int, prunes: bool, data: str, workers: str, folder: Path) -> dict[str, Any]:
    """A plan and a run of one sweep."""
    text, options = SWEEPS[name]
    path = folder / f"{name}.toml"
    if text is None:
        path = find(name)
    else:
        path.write_text("pruner = { name = 'median', startup_trials = 5, warmup_steps = 1 }\n" + text)
    options = [str(path), *options, "--seed", str(seed), "--data", data, "--workers", workers]
    options += [] if prunes else ["--set", "pruner=none"]
    return planned_and_run(name, options, planned(options), seed=seed, prunes=prunes, folder=folder)


def measure_file(path: Path, *, seed: int, data: str, workers: str, folder: Path) -> dict[str, Any]:
    """A plan and a run of the sweep of a file, cut to about a minute."""
    options = [str(path), "--trials", str(FILE_TRIALS), "--seed", str(seed), "--data", data, "--workers", workers]
    options += ["--set", "train_images=0", "--set", "validation_images=0"]
    for epochs in (2**k for k in range(10)):
        plan = planned([*options, "--epochs", str(epochs)])
        if likely(plan) >= FILE_SECONDS:
            break
    prunes = plan["seconds_pruned"] is not None
    return planned_and_run(
        path.stem, [*options, "--epochs", str(epochs)], plan, seed=seed, prunes=prunes, folder=folder
    )


def likely(plan: dict[str, Any]) -> float:
    """The seconds that `plan` thinks likely."""
    return float((plan["seconds_pruned"] or plan["seconds_unpruned"])["likely"])


def planned_and_run(
    name: str, options: list[str], plan: dict[str, Any], *, seed: int, prunes: bool, folder: Path
) -> dict[str, Any]:
    """A run with these options, beside what `plan` said of it."""
    own = folder / f"{name}-{seed}-{prunes}"
    own.mkdir()
    artifacts = ["--artifacts", str(own / "artifacts")]
    seconds, samples = watched([*options, *artifacts], f"sqlite:///{own}/studies.db", own / "out")
    said = plan["seconds_pruned"] if prunes else plan["seconds_unpruned"]
    return {
        "sweep": name,
        "pruner": prunes,
        "epochs": plan["epochs"],
        "seed": seed,
        "plan": plan["plan"],
        "seconds": round(seconds, 1),
        "planned": said,
        "planned_unpruned": plan["seconds_unpruned"],
        "ratio": round(seconds / said["likely"], 3),
        "samples": samples,
        "held": {str(moment): holds(samples, seconds, moment) for moment in MOMENTS},
    }


def is_held(sample: dict[str, float], seconds: float) -> bool:
    """Whether the end lay in the range that was shown."""
    return sample["low"] <= seconds - sample["at"] <= sample["high"]


def holds(samples: list[dict[str, float]], seconds: float, moment: float) -> bool | None:
    """Whether the range that was shown after this share of the run held the end; None where none was shown."""
    before = [sample for sample in samples if sample["at"] <= moment * seconds]
    return is_held(before[-1], seconds) if before else None


def share_held(row: dict[str, Any]) -> float:
    """Of all ranges of a run, the share that held its end."""
    samples = row["samples"]
    return sum(is_held(sample, row["seconds"]) for sample in samples) / len(samples) if samples else 0.0


def show(row: dict[str, Any]) -> None:
    """A run on one line."""
    marks = {True: "yes", False: "NO", None: "none shown"}
    held = ", ".join(f"{float(moment):.0%} {marks[row['held'][moment]]}" for moment in row["held"])
    half = next((each for each in row["samples"] if each["at"] >= row["seconds"] / 2), None)
    halfway = f", halfway {half['low']:.0f} to {half['high']:.0f} s" if half else ""
    said = row["planned"]
    print(
        f"{row['sweep']:14} {'pruned' if row['pruner'] else 'whole '} {row['seconds']:6.1f} s, planned "
        f"{said['likely']:6.1f} s ({said['low']:.0f} to {said['high']:.0f}), real/plan {row['ratio']:.2f}; "
        f"range held at {held}; of all {len(row['samples'])} {share_held(row):.0%}{halfway}",
        flush=True,
    )


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What all runs come to."""
    within = [row for row in rows if 0.75 <= row["ratio"] <= 1.25]
    held = {str(moment): [row["held"][str(moment)] for row in rows] for moment in MOMENTS}
    return {
        "runs": len(rows),
        "plan_within_25_percent": len(within),
        "ratio": {"median": round(statistics.median(row["ratio"] for row in rows), 3),
                  "lowest": min(row["ratio"] for row in rows), "highest": max(row["ratio"] for row in rows)},
        "range_held": {moment: sum(mark is True for mark in marks) for moment, marks in held.items()},
        "share_of_all_ranges": round(statistics.fmean(map(share_held, rows)), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--data", default="synthetic:4000")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--files", nargs="+", type=Path, default=[], help="sweeps of one's own, instead of those")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="time-", dir="/tmp") as folder:
        where_run = {"data": options.data, "workers": options.workers, "folder": Path(folder)}
        for k in range(len(options.files) or options.runs):
            turn, name = divmod(k, len(options.sweeps))
            if options.files:
                row = measure_file(options.files[k].resolve(), seed=options.seed + k, **where_run)
            else:
                prunes = (turn + name) % 2 == 0
                row = measure(options.sweeps[name], seed=options.seed + k, prunes=prunes, **where_run)
            rows.append(row)
            show(row)
            where = {"cores": os.cpu_count(), "data": options.data, "commit": commit(), "versions": versions()}
            if options.json:
                options.json.write_text(json.dumps({"rows": rows, "summary": summarize(rows), **where}, indent=2))
    print(json.dumps(summarize(rows), indent=2))


if __name__ == "__main__":
    main()
