"""What a training step costs on a GPU, and who bounds it: the host that launches, or the GPU that computes.

One line for each network and number of members: milliseconds of a step, those that the host is busy with it, images a
second summed over the members, and memory a member over what is reckoned. In both precisions, and in bf16 also without
the determinism that `prepare_process` asks of cuDNN: where that costs more than a few percent, it is not worth it.

    python benchmarks/gpu_steps.py [--device cuda] [--members 1 16 64] [--seconds 0.4]
"""

import argparse
from dataclasses import replace

import torch

from cifar_sweep.machine.gpu_bench import group_step, milliseconds
from cifar_sweep.machine.groups import config_of
from cifar_sweep.machine.memory import member_bytes
from cifar_sweep.training.device import device_name, prepare_process
from cifar_sweep.training.graph import WARM_UP

CASES = (("convnet+batch_norm", 16), ("cnn3+batch_norm", 16), ("vgg11", 64))
WAYS = (("fp32", True), ("bf16", True), ("bf16", False))  # the precision, and whether cuDNN is to be deterministic


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=0.4, help="how long each is timed at least")
    options = parser.parse_args()
    device = torch.device(options.device)
    prepare_process(device, threads=0)
    print(f"{device_name(device)}, torch {torch.__version__}")
    numbers = f"{'ms':>9}{'host ms':>9}{'images/s':>12}{'memory':>8}"
    print(f"{'network':20}{'batch':>6}{'members':>8}  {'arithmetic':24}{numbers}")
    for network, batch in CASES:
        for members in options.members:
            for precision, deterministic in WAYS:
                torch.backends.cudnn.deterministic = deterministic
                way = precision + ("" if deterministic else ", not deterministic")
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(device)
                try:
                    config = config_of(network, precision=precision)
                    config = replace(config, shape=replace(config.shape, batch_size=batch))
                    run, step = group_step(config, members, device)
                    for _ in range(WARM_UP + 2):  # and the graph of a step is there
                        step()
                    taken, host = milliseconds(step, device, seconds=options.seconds)
                except RuntimeError as error:  # of the memory, or of cuDNN, which finds no way: that is a finding, too
                    print(f"{network:20}{batch:6}{members:8}  {way:24} {str(error).splitlines()[0]}", flush=True)
                    continue
                peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
                rate, of_reckoned = 1e3 * members * batch / taken, peak / members / member_bytes(run.shape)
                numbers = f"{taken:9.2f}{host:9.2f}{rate:12,.0f}{of_reckoned:8.2f}"
                print(f"{network:20}{batch:6}{members:8}  {way:24}{numbers}", flush=True)


if __name__ == "__main__":
    main()
