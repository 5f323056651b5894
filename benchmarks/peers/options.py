"""What both peers are told on their command lines: the same sweep."""

import argparse
from pathlib import Path


def sweep_options(description: str | None) -> argparse.ArgumentParser:
    """A parser of the sweep: the peer's folder, the data, and how many trials of what."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="synthetic:12500", help="as cifar-sweep's --data")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train-images", type=int, default=10_000)
    parser.add_argument("--loader-workers", type=int, default=0)
    return parser
