"""What only a GPU can show. `pytest -m cuda` runs it, in one process; without a GPU it is skipped."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cuda)
            item.add_marker(pytest.mark.alone)


@pytest.fixture
def gpu() -> torch.device:
    """The first GPU; the test is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device("cuda", 0)
