"""Checks that go on while faults happen: one thread for each replica, asking about some subjects in turn."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Subject

__all__ = ["traffic"]

# Between two checks of a thread: two cores carry the servers and the database, too.
PAUSE_S: Final = 0.002
# A check at a replica that is frozen ends with its caller's patience.
TIMEOUT_S: Final = 0.5


@contextlib.contextmanager
def traffic(cluster: Cluster, subjects: Sequence[Subject]) -> Iterator[None]:
    """Asks every replica, as long as the block lasts; the history has what was answered."""
    stop = threading.Event()

    def ask(name: str) -> None:
        while not stop.is_set():
            for subject in list(subjects):
                # Whoever stands in that place now: a process that died is followed by another one.
                replica = cluster.replicas.get(name)
                if replica is not None and replica.is_ready:
                    replica.client.check(subject, timeout_s=TIMEOUT_S)
                stop.wait(PAUSE_S)

    threads = [threading.Thread(target=ask, args=(name,), name=f"traffic at {name}") for name in cluster.replicas]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
