"""Which host a connection begins with, when one keeps silent, and when a write tells where the primary is."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from doorward_server.storage.hosts import Hosts

if TYPE_CHECKING:
    from doorward_server.storage.connect import Connection


class Lead:
    """Stands for a connection, of which nothing is asked but which one it is."""


def a_connection() -> Connection:
    return cast("Connection", Lead())


@pytest.fixture
def hosts() -> Hosts:
    """Of a URL with three."""
    return Hosts(3)


def reached(hosts: Hosts, index: int) -> Connection:
    connection = a_connection()
    hosts.trying(index)
    hosts.reached(index, connection)
    return connection


def test_the_url_has_the_first_word(hosts: Hosts) -> None:
    assert hosts.in_order() == [0, 1, 2]


def test_the_next_connection_begins_where_the_last_one_got_to(hosts: Hosts) -> None:
    hosts.trying(0)
    reached(hosts, 1)
    assert hosts.in_order() == [1, 2, 0]


def test_whoever_gave_up_on_a_host_begins_behind_it(hosts: Hosts) -> None:
    hosts.trying(0)
    assert hosts.in_order() == [1, 2, 0]
    hosts.trying(2)
    assert hosts.in_order() == [0, 1, 2]


def test_a_silent_host_comes_last_and_the_others_keep_their_order(hosts: Hosts) -> None:
    reached(hosts, 1)
    assert hosts.in_order(silent=1) == [2, 0, 1]
    assert hosts.in_order(silent=2) == [1, 0, 2]


def test_before_any_write_was_acknowledged_no_connection_is_astray(hosts: Hosts) -> None:
    assert not hosts.is_astray(reached(hosts, 2))


def test_an_acknowledged_write_tells_which_connections_are_astray(hosts: Hosts) -> None:
    deposed, promoted = reached(hosts, 0), reached(hosts, 1)
    assert hosts.found_primary(promoted)
    assert hosts.is_astray(deposed)
    assert not hosts.is_astray(promoted)
    assert hosts.in_order() == [1, 2, 0]


def test_connections_are_suspect_once_and_again_only_after_another_host_was_reached(hosts: Hosts) -> None:
    promoted = reached(hosts, 1)
    assert hosts.found_primary(promoted)
    reached(hosts, 1)
    assert not hosts.found_primary(promoted)
    reached(hosts, 0)
    assert hosts.found_primary(promoted), "a connection that leads elsewhere was made since"
    assert not hosts.found_primary(promoted)


def test_with_one_host_nothing_is_astray() -> None:
    hosts = Hosts(1)
    connection = reached(hosts, 0)
    assert not hosts.found_primary(connection)
    assert not hosts.is_astray(a_connection())
    hosts.trying(0)
    assert hosts.in_order(silent=0) == [0]
