"""What a parent tells its worker, and what it hears of it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from doorward_server.replica.timing import Signal
from doorward_server.settings import Settings
from doorward_server.workers.process import REMEMBERED_ROWS, WorkerProcess, first_line

if TYPE_CHECKING:
    import pytest

URL = "postgresql://doorward:hunter2hunter2@db.example.com/doorward"


def a_worker() -> WorkerProcess:
    return WorkerProcess(1, Signal())


def test_a_worker_gets_the_parents_settings_with_the_places_that_the_parent_found() -> None:
    settings = Settings(listen="127.0.0.1:0", workers=2, data_dir=Path("somewhere"), hold=7.5, log_format="json")

    told = Settings(**json.loads(first_line(settings, URL, "127.0.0.1:4711")))

    assert told.database_url is not None
    assert told.database_url.get_secret_value() == URL
    found = {"listen": "127.0.0.1:4711", "database_url": SecretStr(URL), "pepper_file": Path("somewhere/pepper.keys")}
    assert told.model_dump() == {**settings.model_dump(), **found}


def test_the_settings_are_one_line() -> None:
    assert first_line(Settings(data_dir=Path("a\nb")), URL, "127.0.0.1:1").count(b"\n") == 1


def test_lines_are_heard_whole_however_they_arrive() -> None:
    worker = a_worker()
    for part in (b"registering fir", b"st\nregistering second\nser", b"ving\n"):
        worker.data_received(part)
    assert list(worker.replica_ids) == ["first", "second"]
    assert worker.is_up


def test_the_last_word_of_counted_sub_leases_stands() -> None:
    worker, words = a_worker(), []
    for part in (b"counting so", b"me\ncount", b"ing none\n"):
        worker.data_received(part)
        words.append(worker.counts_sub_leases)
    assert words == [False, True, False]


def test_a_word_of_a_later_version_is_passed_over() -> None:
    worker = a_worker()
    worker.data_received(b"yodelling loudly\nregistering first\n")
    assert list(worker.replica_ids) == ["first"]
    assert not worker.is_up


def test_the_newest_rows_are_remembered_and_no_more_than_that() -> None:
    worker = a_worker()
    for number in range(REMEMBERED_ROWS + 10):
        worker.data_received(b"registering %d\n" % number)
    assert len(worker.replica_ids) == REMEMBERED_ROWS
    assert worker.replica_ids[-1] == str(REMEMBERED_ROWS + 9)


async def test_a_process_that_the_system_does_not_start_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    worker = a_worker()

    await worker.start(b"{}\n")

    assert worker.status not in {None, 0}
    worker.signal(signal.SIGTERM)
