"""A plain Optuna script: 32 trials of the plain loop, two processes, one SQLite file. Prints one line of JSON.

    python benchmarks/peers/optuna_script.py FOLDER [--batch-size 16] [--trials 32] [--epochs 3] [--data FOLDER]

The database goes into FOLDER. Each process takes half of the trials, so that the number is exact: under one
`MaxTrialsCallback`, two processes can finish a trial too many. `seconds` begins when the script does, `trial_seconds`
when its first trial does, by the study's own times, and ends with the last trial.
"""

import argparse
import json
import multiprocessing
import platform
import time
from importlib.metadata import version
from typing import Any

import optuna
from options import sweep_options

STUDY = "plain"
PROCESSES = 2


def work(storage: str, trials: int, options: argparse.Namespace) -> None:
    """Finish so many trials of the study."""
    from plain_loop import train  # here, for the process that only waits needs no torch

    def objective(trial: optuna.Trial) -> float:
        return train(
            trial.suggest_float("learning_rate", 1e-5, 0.1, log=True),
            options.batch_size,
            data=options.data,
            epochs=options.epochs,
            train_images=options.train_images,
            report=lambda epoch, accuracy: trial.report(accuracy, epoch),
            loader_workers=options.loader_workers,
        )

    optuna.load_study(study_name=STUDY, storage=storage).optimize(objective, n_trials=trials)


def summary(study: optuna.Study) -> dict[str, Any]:
    """What came out, of the complete trials alone."""
    trials = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    begun = min(trial.datetime_start for trial in trials)
    ended = max(trial.datetime_complete for trial in trials)
    return {
        "trial_seconds": round((ended - begun).total_seconds(), 2),
        "trials": len(trials),
        "best": study.best_value,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "torchvision", "optuna")},
    }


def main() -> None:
    started = time.perf_counter()
    options = sweep_options(__doc__).parse_args()
    storage = f"sqlite:///{options.folder.absolute()}/plain.db"
    study = optuna.create_study(
        study_name=STUDY, storage=storage, direction="maximize", pruner=optuna.pruners.NopPruner()
    )
    context = multiprocessing.get_context("spawn")
    shares = [len(range(first, options.trials, PROCESSES)) for first in range(PROCESSES)]
    workers = [context.Process(target=work, args=(storage, share, options)) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(json.dumps({"seconds": round(time.perf_counter() - started, 2)} | summary(study)))


if __name__ == "__main__":
    main()
