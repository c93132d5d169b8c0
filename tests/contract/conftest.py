"""Fixtures of the tests that speak to the session's server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.support.frail import Frail, frail_server
from tests.support.rows import Rows
from tests.support.wire import OwnAccount, an_account

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import ServerProcess, Stubs


@pytest.fixture(scope="session")
def rows(server: ServerProcess) -> Iterator[Rows]:
    """The database of the session's server."""
    with contextlib.closing(Rows(server.data_dir)) as rows:
        yield rows


@pytest.fixture
def account(stubs: Stubs) -> OwnAccount:
    """An account of this test's own, on the plan `enterprise`, with two projects."""
    return an_account(stubs)


@pytest.fixture(scope="module")
def still(stubs: Stubs) -> OwnAccount:
    """The same, shared by tests that change nothing."""
    return an_account(stubs)


@pytest.fixture(scope="session")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frail]:
    """A server that tests may hurt."""
    with frail_server(tmp_path_factory.mktemp("frail")) as frail:
        yield frail


@pytest.fixture
def recovered(frail: Frail) -> Iterator[None]:
    """Lets the next test find it well."""
    yield
    frail.recover()
