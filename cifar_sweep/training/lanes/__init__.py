"""Compiled kernels that train members in the lanes of vector registers. Other rooms and modules import from here."""

from cifar_sweep.training.device import KERNELS
from cifar_sweep.training.lanes.compiled import kernels, kernels_name, lane_count, obstacle, prepare_kernels
from cifar_sweep.training.lanes.lanes import Lanes, fewest_members, offer, stages_of

__all__ = [
    "KERNELS", "Lanes", "fewest_members", "kernels", "kernels_name", "lane_count", "obstacle", "offer",
    "prepare_kernels", "stages_of",
]  # fmt: skip
