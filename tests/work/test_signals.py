"""Signals that ask to stop."""

import subprocess
import sys

import pytest

SENT_TWICE = """
import os, signal, time
from cifar_sweep.work.signals import stop_on_signals
with stop_on_signals() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({pause})
    os.kill(os.getpid(), signal.SIGTERM)
raise SystemExit(stop.exit_code())
"""


@pytest.mark.parametrize(("pause", "code"), [(0.02, 143), (0.6, -15)])
def test_a_signal_that_comes_twice_at_once_is_one_and_a_later_one_ends_at_once(pause: float, code: int) -> None:
    """As `timeout` sends it; as somebody does who has no patience."""
    ended = subprocess.run([sys.executable, "-c", SENT_TWICE.format(pause=pause)], check=False)
    assert ended.returncode == code
