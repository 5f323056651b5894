"""What `doctor` says of a GPU, on a machine that may have none."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cifar_sweep.terminal import doctor

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root)\nGCC version: 12\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82  Wed Oct 27 21:21:55 UTC 2021\n"


@pytest.mark.parametrize(("words", "driver"), [(OPEN, "580.65.06"), (CLOSED, "470.82"), (None, "of unknown version")])
def test_a_gpu_is_named_with_what_makes_it_work(
    words: str | None, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "version"
    if words:
        said.write_text(words)
    monkeypatch.setattr(doctor, "NVIDIA", said)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=140 * 1024**3))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91200)
    expected = f"2 GPU(s), 140.0 GiB; driver {driver}, CUDA 13.0, cuDNN 91200"
    assert doctor.gpus(torch.device("cuda", 0)) == expected
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert doctor.gpus(torch.device("cuda", 0)).endswith("cuDNN missing")
