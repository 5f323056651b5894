"""A worker's hold on its trials: heartbeats while they train, and word of whether they still are to be trained."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cifar_sweep.database.outage import is_outage, wait_out
from cifar_sweep.study.claim import Claim
from cifar_sweep.study.storage import Storage

log = logging.getLogger(__name__)
RETRY_SECONDS = 1.0
T = TypeVar("T")


class Lease:
    """Says every few seconds that these trials are being trained, in a thread of its own, while it is entered.

    A trial that another worker has taken up is no longer spoken for. A beat that the database does not take is tried
    again soon: when it is back, the others must not hear nothing of us.
    """

    def __init__(self, storage: Storage, study: str, claims: Sequence[Claim]) -> None:
        self.halted = False  # whether the study was paused, cancelled or deleted since
        self._storage, self._study = storage, study
        self._held = {claim.trial_id: claim.owner.token for claim in claims}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()  # the claim was the first beat
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()

    def beat(self) -> None:
        """Say so once, and hear whether the study goes on."""
        self.halted = self._storage.is_halted(self._study)
        for trial_id, token in list(self._held.items()):
            if self._storage.owner(trial_id) == token:
                self._storage.beat(trial_id)
            else:
                del self._held[trial_id]

    def _beat_on(self) -> None:
        pause = self._storage.heartbeat_seconds
        while not self._done.wait(pause):
            pause = self._storage.heartbeat_seconds
            try:
                self.beat()
            except Exception as error:
                if not is_outage(error):
                    log.debug("a heartbeat failed: %s", error)
                pause = min(RETRY_SECONDS, pause)


@dataclass(frozen=True)
class Patience:
    """Waits for a database that does not answer, until `stop` says yes. What it does may be done twice."""

    storage: Storage
    stop: Callable[[], bool]

    def __call__(self, operation: Callable[[], T]) -> T:
        """Do it, as soon as the database answers."""
        return wait_out(operation, stop=self.stop, say=log.warning, note=self.storage.note_outage)
