"""A training step as one CUDA graph: after a few steps Python launches no kernel any more, CUDA replays them all.

A step of a small network is more than a hundred launches, which take the host longer than the GPU computes.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from cifar_sweep.errors import one_line
from cifar_sweep.training.device import is_out_of_memory, is_sick

log = logging.getLogger(__name__)

WARM_UP = 3  # steps that are run as they are: libraries choose their algorithms and take their memory

Step = Callable[[Tensor, Tensor], None]


def is_replayed(device: torch.device) -> bool:
    """Whether steps on this device may become a graph."""
    return device.type == "cuda"


class Replay:
    """The steps of one group: a few run for real, the next one is captured and from then on replayed.

    A step may be captured that launches the same kernels on the same memory each time, and leaves its results there.
    No step is taken twice or undone. Batches of another size than the first one's run as they are. Where a step cannot
    be captured, a warning says so, and all of them run as they are. `step` is no attribute: its run would never be
    freed.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._batch: tuple[Tensor, Tensor] | None = None  # where the captured step reads its images and labels
        self._launch: Callable[[], None] | None = None
        self._shape: torch.Size | None = None

    def __call__(self, step: Step, images: Tensor, labels: Tensor) -> None:
        """Take a step."""
        self._shape = self._shape or images.shape
        if images.shape != self._shape:
            step(images, labels)
            return
        self._taken += 1
        if self._taken <= WARM_UP:
            aside(step, images, labels)
            return
        if self._taken == WARM_UP + 1:
            self._batch = images.clone(), labels.clone()
            self._launch = _captured(step, *self._batch)
        if self._launch is None or self._batch is None:
            step(images, labels)
            return
        for kept, given in zip(self._batch, (images, labels), strict=True):
            kept.copy_(given)
        self._launch()


def _captured(step: Step, images: Tensor, labels: Tensor) -> Callable[[], None] | None:
    """What `capture` gives; None, and a warning, where it cannot."""
    try:
        return capture(step, images, labels)
    except RuntimeError as error:
        if is_out_of_memory(error) or is_sick(images.device):
            raise
        log.warning("steps are launched kernel by kernel, which is slower: no graph of them: %s", one_line(error))
        return None


def aside(step: Step, images: Tensor, labels: Tensor) -> None:
    """Take a step on a stream of its own, as CUDA wants it before a capture."""
    main = torch.cuda.current_stream(images.device)
    side = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
    side.wait_stream(main)
    with torch.cuda.stream(side):
        step(images, labels)
    main.wait_stream(side)


def capture(step: Step, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """What takes such a step on whatever is in `images` and `labels` then; nothing is computed yet."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may copy meanwhile
        step(images, labels)
    return graph.replay
