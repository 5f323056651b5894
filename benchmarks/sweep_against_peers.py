"""Wall-clock time of one whole sweep: cifar-sweep against a plain Optuna script and Ray Tune, on the same machine.

A sweep is 32 trials of `convnet` over the learning rate, with TPE and no pruning, each of equally many epochs on the
same images. The peers are in `benchmarks/peers`: both train with the reports' plain loop, two trials at a time. The
sides take turns, each sweep in fresh processes and a fresh folder; only the decoded images are there before it.

Start-up in: the whole command, from its start to its end; ours with an empty cache, so that it measures the machine
first. Start-up out: from the start of the first trial to the end of the last one, by the trials' own times; ours from a
second sweep that finds those measurements in the cache.

    python benchmarks/sweep_against_peers.py --python-ray ray-env/bin/python [--repeats 1] [--json] > peers.json

Without --python-ray, an interpreter that has `ray[tune]` and our dependencies, that peer is left out.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cifar_sweep.study.opening import load
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.study.storage import open_existing
from cifar_sweep.training.device import available_cores, device_name, resolve_device
from cifar_sweep.training.images import data

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks" / "peers"
SIDES = {"ours": "cifar-sweep", "optuna": "plain Optuna script", "ray": "Ray Tune, OptunaSearch"}
SWEEP = """\
trials = {trials}
sampler = "tpe"
pruner = {{ name = "none" }}

[fixed]
model = "convnet"
batch_size = {batch_size}
epochs = {epochs}
train_images = {train_images}

[space]
learning_rate = {{ low = 1e-5, high = 0.1, log = true }}
"""
Figures = dict[str, Any]


def new_cache(folder: Path, images: Path) -> Path:
    """A cache folder that holds the decoded images of another one and nothing else."""
    cache = folder / "cache"
    cache.mkdir()
    for entry in images.glob("data-*"):
        if entry.is_dir():
            (cache / entry.name).symlink_to(entry)
    return cache


def timed(command: Sequence[str], cache: Path) -> tuple[float, str]:
    """Wall seconds of a command from its start to its end, and what it printed.

    Raises:
        SystemExit: it failed; the message has the end of its errors.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"CIFAR_SWEEP_CACHE": str(cache), "PYTHONPATH": path}
    started = time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if ended.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {ended.returncode}:\n{ended.stderr[-4000:]}")
    return seconds, ended.stdout


def our_sweep(folder: Path, cache: Path, options: argparse.Namespace) -> Figures:
    """One sweep by `cifar-sweep run`."""
    folder.mkdir()
    address = f"sqlite:///{folder}/studies.db"
    file = folder / "against-peers.toml"
    file.write_text(SWEEP.format_map(vars(options)))
    command = [sys.executable, "-m", "cifar_sweep", "run", str(file), "--data", options.data, "--storage", address,
               "--artifacts", str(folder / "artifacts"), *shlex.split(options.our_options)]  # fmt: skip
    seconds, _ = timed(command, cache)
    with closing(open_existing(address)) as storage:
        trials = load(storage, file.stem).ranked()
    span = max(trial.ended for trial in trials) - min(trial.started for trial in trials)
    return {
        "seconds": seconds,
        "trial_seconds": span.total_seconds(),
        "trials": len(trials),
        "best": trials[0].value,
        "versions": versions(),
    }


def ours(folder: Path, images: Path, options: argparse.Namespace) -> Figures:
    """Two sweeps on one cache: the first one measures the machine, the second one knows it."""
    cache = new_cache(folder, images)
    first = our_sweep(folder / "first", cache, options)
    second = our_sweep(folder / "second", cache, options)
    assert second["trials"] == first["trials"]
    return first | {
        "trial_seconds": second["trial_seconds"],
        "second_sweep_seconds": round(second["seconds"], 2),
        "first_sweep_trial_seconds": round(first["trial_seconds"], 2),
    }


def peer(interpreter: str, script: str, folder: Path, images: Path, options: argparse.Namespace) -> Figures:
    """One sweep by a script that prints its figures as its last line."""
    command = [interpreter, str(PEERS / script), str(folder)]
    for name in ("data", "batch_size", "trials", "epochs", "train_images", "loader_workers"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    seconds, output = timed(command, new_cache(folder, images))
    return json.loads(output.splitlines()[-1]) | {"seconds": seconds}


def sweep(side: str, images: Path, options: argparse.Namespace) -> Figures:
    """One turn of a side, in a folder of its own.

    Raises:
        SystemExit: not all of the trials were completed.
    """
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as name:
        folder, busy = Path(name), os.getloadavg()[0]
        if side == "ours":
            figures = ours(folder, images, options)
        elif side == "optuna":
            figures = peer(sys.executable, "optuna_script.py", folder, images, options)
        else:
            figures = peer(options.python_ray, "ray_tune.py", folder, images, options)
    if figures["trials"] != options.trials:
        raise SystemExit(f"{SIDES[side]}: {figures['trials']} of {options.trials} trials were completed.")
    rounded = {key: round(figures[key], 2) for key in ("seconds", "trial_seconds")}
    return figures | rounded | {"load_before": busy}


def turns(images: Path, options: argparse.Namespace) -> list[Figures]:
    """All sweeps, the sides in turns; each repeat begins with another side."""
    sides = [side for side in SIDES if side != "ray" or options.python_ray]
    runs = []
    for repeat in range(options.repeats):
        first = repeat % len(sides)
        for batch_size in options.batch_sizes:
            for side in sides[first:] + sides[:first]:
                settings = argparse.Namespace(**vars(options) | {"batch_size": batch_size})
                found = sweep(side, images, settings)
                runs.append({"side": side, "batch_size": batch_size, "repeat": repeat} | found)
                print(f"batch {batch_size}, {SIDES[side]}: {found['seconds']} s, start-up out {found['trial_seconds']} "
                      f"s, best {found['best']:.4f}", file=sys.stderr, flush=True)  # fmt: skip
    return runs


def compared(runs: Sequence[Figures]) -> list[Figures]:
    """A row for each batch size and side: medians, and the median of how many times as long as ours it took."""
    rows = []
    for batch_size in dict.fromkeys(run["batch_size"] for run in runs):
        of_batch = [run for run in runs if run["batch_size"] == batch_size]
        our_runs = {run["repeat"]: run for run in of_batch if run["side"] == "ours"}
        for side in dict.fromkeys(run["side"] for run in of_batch):
            mine = [run for run in of_batch if run["side"] == side]
            row: Figures = {"batch_size": batch_size, "side": side}
            for key in ("seconds", "trial_seconds"):
                ratios = [run[key] / our_runs[run["repeat"]][key] for run in mine]
                row[key] = round(statistics.median(run[key] for run in mine), 2)
                row[f"{key}_over_ours"] = round(statistics.median(ratios), 2)
                row[f"{key}_over_ours_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
            rows.append(row)
    return rows


def show(rows: Sequence[Figures]) -> None:
    """The rows as a table."""
    print("| batch | sweep by | start-up in, s | times ours | start-up out, s | times ours |")
    print("|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["batch_size"], list(SIDES).index(row["side"]))):
        cells = [row["batch_size"], SIDES[row["side"]]]
        for key in ("seconds", "trial_seconds"):
            low, high = row[f"{key}_over_ours_range"]
            spread = "" if low == high else f" ({low} to {high})"
            cells += [f"{row[key]:.1f}", f"{row[f'{key}_over_ours']}{spread}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def has_ray(interpreter: str) -> bool:
    """Whether an interpreter has what `ray_tune.py` imports."""
    command = [interpreter, "-c", "import optuna, ray.tune, torchvision"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic:12500", help="as cifar-sweep's --data")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train-images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--python-ray", metavar="PATH", help="an interpreter that has ray[tune] and our dependencies")
    parser.add_argument("--our-options", default="", help="more for `cifar-sweep run`: --our-options='--workers 2'")
    parser.add_argument("--loader-workers", type=int, default=0, help="loader processes of each trial of the peers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.python_ray and not has_ray(options.python_ray):
        parser.error(
            f"--python-ray {options.python_ray}: not an interpreter that imports ray.tune, optuna, torchvision"
        )
    with tempfile.TemporaryDirectory(prefix="peers-images-") as name:
        with patch.dict(os.environ, CIFAR_SWEEP_CACHE=name):
            images = data.load(options.data)
        runs = turns(Path(name), options)
    rows = compared(runs)
    left_out = [] if options.python_ray else [SIDES["ray"]]
    device = resolve_device("auto")
    environment = {
        "device": f"{device.type} ({device_name(device)})",
        "cores": available_cores(),
        "commit": commit(),
        "data": images.name,
        "versions": {run["side"]: run["versions"] for run in runs},
    }
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in ("python_ray", "json")}
        report = {"rows": rows, "left_out": left_out, "settings": settings, "environment": environment}
        print(json.dumps(report | {"runs": runs}, indent=2))
        return
    show(rows)
    print(f"{options.trials} trials of {options.epochs} epochs on {options.train_images:,} of {images.name}, "
          f"n = {options.repeats}; {json.dumps(environment)}")  # fmt: skip
    for side in left_out:
        print(f"left out: {side}; --python-ray names an interpreter that has it")


if __name__ == "__main__":
    main()
