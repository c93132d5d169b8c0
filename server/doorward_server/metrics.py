"""What this process counts and measures, in one registry (design sections 5, 7 and 9). No label holds a secret or an id.

Imports nothing of ours: the layers above write here, `monitoring.py` shows it.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["BARRIERS", "BARRIER_SECONDS", "REGISTRATIONS", "REGISTRY"]

REGISTRY: Final = CollectorRegistry()

# From well under a poll to the longest hold that is usual.
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

BARRIER_SECONDS: Final = Histogram(
    "doorward_barrier_seconds",
    "How long a change waited, after its acknowledged commit, until nobody answered from before it any more.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
BARRIERS: Final = Counter(
    "doorward_barriers",
    "Waits for a change to reach every replica, by how they ended: confirmed, expired, deadline, unknown.",
    ("outcome",),
    registry=REGISTRY,
)
REGISTRATIONS: Final = Counter(
    "doorward_registrations",
    "How often this replica registered, and so began with empty caches.",
    registry=REGISTRY,
)
