"""A bounded map that keeps what is used: second-chance eviction, whose touch is a flag.

`find` never reorders anything: it reads, and adds the key to a set of touched ones, so a thread that only reads may use
it beside the one that writes. `put` evicts the oldest entry that was not touched since it was last passed over. All is
bounded: the entries by the capacity, the flags by the entries, the work of one `put` by `_MOST_CHANCES`.
Used by `proofs` and `token_table` (design sections 7 and 11). No await, no lock: only one thread writes.
"""

from collections import OrderedDict
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

# With every entry touched, one put would otherwise pass over all of them: 100,000 take 15 ms, and everyone waits.
_MOST_CHANCES: Final = 64


class SecondChanceMap(Generic[K, V]):
    """At most `capacity` entries; no value may be None."""

    __slots__ = ("_capacity", "_entries", "_touched", "look_up", "touch")

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self._capacity = capacity
        # An OrderedDict, because the first key of a plain dict is found by walking over everything deleted before it.
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._touched: set[K] = set()
        # The two halves of `find`, for those that are asked at every check and spare a call: the value or None without
        # a second chance, and the second chance, which only a key that was just looked up may be given.
        self.look_up: Final = self._entries.get
        self.touch: Final = self._touched.add

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def capacity(self) -> int:
        """The most entries it ever holds."""
        return self._capacity

    def find(self, key: K) -> V | None:
        """The value, which thereby gets a second chance, or None."""
        value = self._entries.get(key)
        if value is not None:
            self._touched.add(key)
        return value

    def peek(self, key: K) -> V | None:
        """The value or None, without a second chance."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> tuple[K, V] | None:
        """Keeps value under key, in place of a former one; returns the entry that had to go for it, if one had to."""
        evicted = None
        if key not in self._entries and len(self._entries) >= self._capacity:
            evicted = self._evict_one()
        self._entries[key] = value
        return evicted

    def pop(self, key: K) -> V | None:
        """Takes the entry out and returns its value, or None."""
        self._touched.discard(key)
        return self._entries.pop(key, None)

    def clear(self) -> None:
        """Empties it."""
        self._entries.clear()
        self._touched.clear()

    def _evict_one(self) -> tuple[K, V]:
        # A thread that reads may flag a key just after it was evicted; such flags are dropped with all others.
        if len(self._touched) > len(self._entries):
            self._touched.clear()
        for _ in range(_MOST_CHANCES):
            key = next(iter(self._entries))
            if key not in self._touched:
                break
            self._touched.discard(key)
            self._entries.move_to_end(key)
        key, value = self._entries.popitem(last=False)
        self._touched.discard(key)
        return key, value
