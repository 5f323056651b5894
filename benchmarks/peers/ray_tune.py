"""Ray Tune with OptunaSearch: 32 trials of the plain loop, two at a time, none stopped. The last line printed is JSON.

    python benchmarks/peers/ray_tune.py FOLDER [--batch-size 16] [--trials 32] [--epochs 3] [--data FOLDER]

Ray's own files and Tune's results go into FOLDER, whose path must be short, for Ray keeps sockets there. Without
telemetry and dashboard; Ray listens on every address while it runs, but asks for a token. `seconds` begins when the
script does and ends when Ray has shut down, `trial_seconds` is from the first line of the first trial to the last
report of the last one.
"""

import argparse
import json
import os
import platform
import secrets
import time
from importlib.metadata import version
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # or Ray would leave one in the home folder
}

import ray
from options import sweep_options
from ray import tune
from ray.tune.search.optuna import OptunaSearch

AT_ONCE = 2


def trainable(config: dict[str, Any]) -> None:
    """One trial; Tune tells OptunaSearch the last report's `best`."""
    from plain_loop import train

    started, best = time.time(), 0.0

    def report(_epoch: int, accuracy: float) -> None:
        nonlocal best
        best = max(best, accuracy)
        tune.report({"accuracy": accuracy, "best": best, "started": started, "ended": time.time()})

    train(config["learning_rate"], report=report, **config["given"])


def sweep(options: argparse.Namespace) -> tune.ResultGrid:
    """Run all trials."""
    given = {
        "batch_size": options.batch_size,
        "data": options.data,
        "epochs": options.epochs,
        "train_images": options.train_images,
        "loader_workers": options.loader_workers,
    }
    gpus = ray.cluster_resources().get("GPU", 0) / AT_ONCE
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": min(1, gpus)}),
        param_space={"learning_rate": tune.loguniform(1e-5, 0.1), "given": given},
        tune_config=tune.TuneConfig(
            metric="best",
            mode="max",
            search_alg=OptunaSearch(),
            num_samples=options.trials,
            max_concurrent_trials=AT_ONCE,
            # Tune's default starts Python and torch again for each trial: 31 to 34 s against 6.5 to 7.2 s of trial
            # time for 8 tiny trials on 2 cores, two runs each (ray 2.60.0).
            reuse_actors=not options.fresh_actors,
        ),
        run_config=tune.RunConfig(storage_path=str(options.folder.absolute() / "results"), verbose=0),
    )
    return tuner.fit()


def summary(results: tune.ResultGrid, epochs: int) -> dict[str, Any]:
    """What came out, of the complete trials alone."""
    ends = [result.metrics for result in results if not result.error and result.metrics["training_iteration"] == epochs]
    seconds = max(end["ended"] for end in ends) - min(end["started"] for end in ends)
    return {
        "trial_seconds": round(seconds, 2),
        "trials": len(ends),
        "best": max(end["best"] for end in ends),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "torchvision", "optuna", "ray", "pandas")},
    }


def main() -> None:
    started = time.perf_counter()
    parser = sweep_options(__doc__)
    parser.add_argument("--fresh-actors", action="store_true", help="Tune's default: a new process for each trial")
    options = parser.parse_args()
    ray.init(
        num_cpus=AT_ONCE,
        include_dashboard=False,
        object_store_memory=80_000_000,
        _temp_dir=str(options.folder.absolute()),
    )
    found = summary(sweep(options), options.epochs)
    ray.shutdown()
    print(json.dumps({"seconds": round(time.perf_counter() - started, 2)} | found))


if __name__ == "__main__":
    main()
