"""Every RPC of the contract is in the access table and in the method table, and neither holds anything else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from doorward.clock import SystemClock
from doorward_server import parts
from doorward_server.api.access import TABLE
from doorward_server.credentials import pepper
from doorward_server.replica.tasks import Tasks
from doorward_server.replica.timing import Timing
from doorward_server.settings import Settings
from doorward_server.storage.pool import Database
from tests.support.wire import every_rpc

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.api.methods import Method

CONTRACT = {rpc.path for rpc in every_rpc()}


@pytest.fixture
async def methods(tmp_path: Path) -> list[Method]:
    """The server's method table, over parts that are built and not started: nothing connects before it is asked to."""
    settings = Settings(data_dir=tmp_path)
    database = Database("postgresql:///nowhere", hold_ms=settings.hold_ms)
    ring = pepper.create(settings.pepper_path)
    async with asyncio.TaskGroup() as group:
        replica = parts.ReplicaParts(settings, database, ring, Timing(SystemClock()), Tasks(group))
        return parts.methods_of(settings, database, ring, replica)


def test_every_rpc_has_its_row_in_the_access_table() -> None:
    assert set(TABLE) == CONTRACT


async def test_every_rpc_has_its_row_in_the_method_table(methods: list[Method]) -> None:
    assert sorted(method.path for method in methods) == sorted(CONTRACT)


async def test_a_method_has_the_access_that_the_table_gives_it(methods: list[Method]) -> None:
    assert {method.path: method.access for method in methods} == TABLE


async def test_streams_are_served_as_streams(methods: list[Method]) -> None:
    streams = {rpc.path for rpc in every_rpc() if rpc.is_stream}
    assert {method.path for method in methods if method.is_stream} == streams
