"""Is the plan the fastest one? Every split of the cores and every group size, against what `plan` chooses.

    python benchmarks/plan_grid.py [--turns 3] [--most 32] [--cases convnet:16 vgg11:64]

Images a second of the whole machine, as `cifar-sweep bench` takes them: all workers train at once, without validation.
The cells of a network take turns. A cell's figure is the median of its turns; the plan's cell is one of them.
"""

import argparse
import statistics
from collections.abc import Iterator

from cifar_sweep.config import TrialConfig
from cifar_sweep.machine import bench
from cifar_sweep.machine.groups import GROUP_SIZES
from cifar_sweep.machine.plan import choose
from cifar_sweep.machine.processes import ProcessPool, process_pool
from cifar_sweep.machine.speeds import Split
from cifar_sweep.training.device import device_name, resolve_device
from cifar_sweep.training.limits import available_cores

SLOW = {"vgg11": 4}  # the largest group that is tried: a step of a larger one takes longer than it is timed
CASES = [f"{model}:{batch}" for model, batch in bench.CASES]


def splits(cores: int) -> Iterator[Split]:
    """Every number of workers with as many threads as the cores allow, and one worker of each number below."""
    for workers in range(1, cores + 1):
        for threads in sorted({1, cores // workers}):
            yield Split(workers, threads)


def rate(pool: ProcessPool, split: Split, size: int, config: TrialConfig, options: argparse.Namespace) -> float:
    call = {"members": size, "source": options.data, "threads": split.threads, "seconds": options.seconds}
    call |= {"config": config, "device": resolve_device("cpu")}
    return float(sum(pool.together(bench.our_rate, *([call] * split.workers))))


def main() -> None:
    """Print each network's grid, and how near the plan is to the best of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic:10000")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each is timed at least")
    parser.add_argument("--most", type=int, default=GROUP_SIZES[-1], help="the largest group that is tried")
    parser.add_argument("--cases", nargs="+", default=CASES)
    options = parser.parse_args()
    cores = available_cores()
    print(f"{device_name(resolve_device('cpu'))}, {cores} cores", flush=True)
    for case in options.cases:
        model, _, batch = case.partition(":")
        plan = choose([bench.many_trials(model, int(batch))], device="cpu", always=True)
        assert plan.found is not None
        params = {"model": model, "batch_size": int(batch)}
        config = TrialConfig.from_params(params, classes=10, precision=plan.found.precision, data_seed=0, seed=0)
        chosen = plan.split, plan.groups.size(config.shape)
        most = min(options.most, SLOW.get(model, options.most))
        sizes = [size for size in GROUP_SIZES if size <= most]
        cells = list(dict.fromkeys([chosen, *((split, size) for split in splits(cores) for size in sizes)]))
        with process_pool(cores) as pool:
            turns = [[rate(pool, *cell, config, options) for cell in cells] for _ in range(options.turns + 1)][1:]
        found = dict(zip(cells, (statistics.median(each) for each in zip(*turns, strict=True)), strict=True))
        best = max(found, key=lambda cell: found[cell])
        for split in dict.fromkeys(split for split, _ in cells):
            row = "".join(f"{size:>6}: {found[split, size]:7,.0f}" for size in sizes if (split, size) in found)
            print(f"{case:12} {split.workers} x {split.threads} threads {row}", flush=True)
        told = [f"{split.workers} x {split.threads} threads x {size}" for split, size in (chosen, best)]
        print(
            f"{case:12} {config.shape.precision}: plan {told[0]}, {found[chosen]:,.0f} images/s; best {told[1]}, "
            f"{found[best]:,.0f}; plan over best {found[chosen] / found[best]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
