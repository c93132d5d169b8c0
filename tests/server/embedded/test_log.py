"""PostgreSQL's log stays below its bound while PostgreSQL appends to it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from doorward_server.embedded.log import BoundedLog

if TYPE_CHECKING:
    from pathlib import Path


def test_log_past_its_limit_keeps_its_newest_part_and_goes_on(place: Path) -> None:
    log = BoundedLog(place / "postgres.log", limit=1000)
    descriptor = log.open()
    for number in range(100):
        os.write(descriptor, f"line {number:03} {'.' * 30}\n".encode())
    log.bound()
    os.write(descriptor, b"after\n")
    os.close(descriptor)
    assert (place / "postgres.log").read_bytes() == b"after\n"
    kept = (place / "postgres.log.1").read_text()
    assert len(kept) == 1000
    assert "line 099" in kept


def test_log_below_its_limit_is_left_alone(place: Path) -> None:
    log = BoundedLog(place / "postgres.log", limit=1000)
    descriptor = log.open()
    os.write(descriptor, b"kept\n")
    log.bound()
    os.close(descriptor)
    assert (place / "postgres.log").read_bytes() == b"kept\n"
    assert not (place / "postgres.log.1").exists()


def test_tail_is_of_this_start_only(place: Path) -> None:
    (place / "postgres.log").write_text("of yesterday\n")
    log = BoundedLog(place / "postgres.log")
    descriptor = log.open()
    assert log.tail() == ""
    os.write(descriptor, b"one\n\ntwo\n")
    os.close(descriptor)
    assert log.tail() == "one | two"


def test_log_is_private(place: Path) -> None:
    former = os.umask(0)
    try:
        os.close(BoundedLog(place / "postgres.log").open())
    finally:
        os.umask(former)
    assert (place / "postgres.log").stat().st_mode & 0o777 == 0o600
