"""Does `run --hours H` end in time? Runs sweeps as subprocesses, one by one, and compares planned and real ends.

    python benchmarks/hours.py --data FOLDER --sweeps lr_batch schedule regularization optimizer vgg_depth
    python benchmarks/hours.py --data synthetic:2000 --hours 0.05 --sweeps lr_batch --set model=convnet

The time is that of the whole command, from its start to its exit. A run is within the bound if it is over by at most
5 % or one minute, whichever is larger, has not failed and has a complete trial.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOST_OVER, MOST_SECONDS_OVER = 0.05, 60.0


def measure(sweep: str, hours: float, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run, and what its study says of it."""
    storage, name = f"sqlite:///{folder}/studies.db", f"{Path(sweep).stem}-{hours:g}"
    command = [sys.executable, "-m", "cifar_sweep", "run", sweep, "--hours", f"{hours:g}", "--data", options.data]
    command += [
        "--storage",
        storage,
        "--artifacts",
        str(folder / "artifacts"),
        "--study",
        f"{Path(sweep).stem}-{hours:g}",
    ]
    command += [f"--set={pair}" for pair in options.set]
    begun = time.time()
    finished = subprocess.run(command, capture_output=True, text=True)
    seconds = time.time() - begun
    over = seconds - 3600 * hours
    row = {"sweep": sweep, "hours": hours, "seconds": round(seconds, 1), "seconds_over": round(over, 1)}
    row |= {"exit_code": finished.returncode, "said": finished.stdout, "errors": finished.stderr}
    if finished.returncode:
        return row | {"within": False}
    told = subprocess.run(
        [sys.executable, "-m", "cifar_sweep", "status", name, "--json", "--storage", storage],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    study = json.loads(told.stdout)["studies"][0]
    bound = max(MOST_OVER * 3600 * hours, MOST_SECONDS_OVER)
    row |= {key: study[key] for key in ("trials", "best", "reason", "description", "saved_by_pruning")}
    row |= {"confirmation": study.get("confirmation")}
    return row | {"within": over <= bound and study["trials"]["complete"] > 0}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    planned, real = f"{3600 * row['hours']:.0f} s", f"{row['seconds']:.0f} s"
    found = "failed: " + row["errors"].strip().rpartition("\n")[2]
    if "trials" in row:
        accuracy = f"{row['best']['value']:.2%}" if row["best"] else "none"
        found = f"{row['trials']['complete']} complete, {row['trials']['pruned']} pruned, best {accuracy}"
        found += row["description"].rpartition("; cut to")[2].partition(":")[2]
    within = "yes" if row["within"] else "NO"
    return f"| {row['sweep']} | {planned} | {real} | {row['seconds_over']:+.0f} s | {within} | {found} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", required=True)
    parser.add_argument("--hours", nargs="+", type=float, default=[0.1, 0.25, 0.5])
    parser.add_argument("--data", default=os.environ.get("CIFAR_SWEEP_DATA", "auto"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as `run` takes it, for every sweep")
    parser.add_argument("--json", type=Path, help="written after each run")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| sweep | planned | real | over | within the bound | trials |\n|---|---|---|---|---|---|")
    for hours in sorted(options.hours):
        for sweep in options.sweeps:
            with tempfile.TemporaryDirectory(prefix="cifar-sweep-") as folder:
                rows.append(measure(sweep, hours, options, Path(folder)))
            print(line(rows[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=2))
    print(f"\nwithin the bound: {sum(row['within'] for row in rows)} of {len(rows)}")


if __name__ == "__main__":
    main()
