#!/usr/bin/env bash
# What a first hour on a machine with a GPU is for: whether training there is right, then how fast it is.
#
#     benchmarks/first_gpu_hour.sh [FOLDER]
#
# Run it in a checkout, in an environment with `pip install -e '.[dev]'`. CIFAR_SWEEP_DATA names CIFAR-10, else images are
# synthetic. Every part writes its own file into FOLDER (gpu-hour); one that fails, or takes too long, is said, and the
# next goes on. The last line says how many failed, which is the exit code, too.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-gpu-hour}")
data=${CIFAR_SWEEP_DATA:-synthetic}
mkdir -p "$folder"
export CIFAR_SWEEP_CACHE="$folder/cache" CIFAR_SWEEP_STORAGE="sqlite:///$folder/studies.db"
export CIFAR_SWEEP_ARTIFACTS="$folder/artifacts"
run=(python -m cifar_sweep run --data "$data" --device cuda)
failed=0

part() {  # NAME MINUTES COMMAND...
    local name=$1 minutes=$2 since=$SECONDS
    shift 2
    if timeout --signal=INT "${minutes}m" "$@" >"$folder/$name.txt" 2>&1; then
        echo "$name: well, $((SECONDS - since)) s"
    else
        echo "$name: FAILED, $((SECONDS - since)) s; the end of $folder/$name.txt:"
        tail -n 5 "$folder/$name.txt" | sed 's/^/    /'
        failed=$((failed + 1))
    fi
}

# 1. Which machine, and whether it is right. What fails here comes before any speed.
part machine 1 nvidia-smi
part torch 2 python -c "import torch; print(torch.__version__, torch.ones(3, device='cuda').sum().item())"
part doctor 2 python -m cifar_sweep doctor --data "$data"
part tests 15 python -m pytest -m cuda -p no:xdist --durations 10
# 2. Is a step bound by the host or by the GPU, and does a group cost as much as one trial? Then ours against a plain loop.
part steps 8 python benchmarks/gpu_steps.py
part bench 15 python -m cifar_sweep bench --data "$data" --device cuda
# 3. The same 32 trials in groups of 1, 8 and 32: seconds from the command to its end.
cat >"$folder/group.toml" <<'TOML'
trials = 32
sampler = "random"
pruner = "none"

[fixed]
model = "convnet"
batch_size = 16
epochs = 1

[space]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
TOML
for group in 1 8 32; do
    part "group-$group" 6 "${run[@]}" "$folder/group.toml" --study "group-$group" --workers 1 --group "$group"
done
# 4. As a user runs it: planned, then searched, and what was planned against what it took.
part plan 5 python -m cifar_sweep plan lr_batch --data "$data" --device cuda --trials 32
part search 12 "${run[@]}" lr_batch --study search --trials 32
part export 3 python -m cifar_sweep export search --data "$data" --device cuda --out "$folder/best"

echo "$failed parts failed; all is in $folder"
exit "$failed"
