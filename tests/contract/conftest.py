"""Fixtures of the tests that speak to the session's server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.wire import OwnAccount, Rows, an_account

if TYPE_CHECKING:
    from tests.support.server import ServerProcess, Stubs


@pytest.fixture(scope="session")
def rows(server: ServerProcess) -> Rows:
    """The database of the session's server."""
    return Rows(server.data_dir)


@pytest.fixture
def account(stubs: Stubs) -> OwnAccount:
    """An account of this test's own, on the plan `enterprise`, with two projects."""
    return an_account(stubs)
