"""Which tokens of an account match a filter, a page at a time: every read is of an index, and bounded (design section 6).

An account has a bounded number of live tokens and any number of revoked ones, so no page may read on until it is full.
Instead one index drives the page: of all that fit the filter, the one whose next `SCANNED` entries reach furthest back,
which is the most selective one here. The page goes as far as those entries do, whatever matches among them, and the next
page goes on from there. So a page may be short, none skips or repeats, and each may be driven by another index.

Lists follow the ordinal, newest first; or, where the filter asks about that, idleness or expiry. Called by
`service/find_tokens.py` and, inside the door, by `service/revoke_many.py`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from doorward_server.model import TokenState
from doorward_server.storage.token_entries import (
    BEFORE_ALL,
    FIRST_PLACE,
    Arguments,
    read_page,
    read_reach,
    read_timed_page,
    read_timed_reach,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import asyncpg

    from doorward_server.model import Page, TokenFilter
    from doorward_server.storage.connect import Connection

__all__ = ["LIVE_STATES", "SCANNED", "FoundToken", "FoundTokens", "find_page"]

# Entries that one page looks at, at most: some 10 ms if none of them matches.
SCANNED: Final = 2_000
ALL_STATES: Final = frozenset(TokenState)
LIVE_STATES: Final = ALL_STATES - {TokenState.REVOKED}
# Drivers that are not in the list's order, and good only if all their entries can be sorted.
UNORDERED: Final = frozenset({"name", "expired"})
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class FoundToken(NamedTuple):
    """A token that matches; within its account the one with the higher `ordinal` is the newer one."""

    token_id: str
    ordinal: int


class FoundTokens(NamedTuple):
    """A page, in the list's order. `next_key`: `Page.after` of the next one; None: this was the last."""

    tokens: tuple[FoundToken, ...]
    next_key: tuple[str, ...] | None


class _Driver(NamedTuple):
    """An index, by its name in `token_entries.py`; of labels, which one."""

    name: str
    label: str | None = None
    value: str | None = None


class _Reach(NamedTuple):
    """How far back a driver's page goes (0: to the end), and how many entries it has until there."""

    lowest: int
    entries: int
    driver: _Driver


async def find_page(
    connection: Connection, account_id: str, wanted: TokenFilter, page: Page, now: datetime, *, scanned: int = SCANNED
) -> FoundTokens:
    """A page of the account's tokens that match at `now`, the database's time. It looks at `scanned` entries at most.

    Newest first; with `unused_since` the longest unused first; with `expires_before` the soonest to expire first. Keys are
    `(ordinal,)`, of the latter two `(microseconds since the Unix epoch, ordinal)`.
    """
    states = _states_of(wanted)
    if not states:
        return FoundTokens((), None)
    asked = _arguments(account_id, wanted, states, now, scanned)
    if wanted.obtained_by:
        return await _newest_page(connection, asked, page, _Reach(0, 0, _Driver("obtained")))
    if wanted.expires_before is not None:
        return await _timed_page(connection, asked, page, "expiring")
    if wanted.unused_since is not None:
        return await _timed_page(connection, asked, page, "unused")
    *others, of_states = _drivers(wanted, states)
    if not others and of_states.name in {"all", "revoked"}:
        # Each entry matches: the page is full before it has gone far.
        return await _newest_page(connection, asked, page, _Reach(0, 0, of_states))
    return await _newest_page(connection, asked, page, await _furthest(connection, asked, page, [*others, of_states]))


def _states_of(wanted: TokenFilter) -> frozenset[TokenState]:
    """The states that match; none at all if the filter contradicts itself."""
    states = ALL_STATES if wanted.state is None else frozenset({wanted.state})
    is_about_live = wanted.live_only or wanted.unused_since is not None or wanted.expires_before is not None
    return states & LIVE_STATES if is_about_live else states


def _arguments(
    account_id: str, wanted: TokenFilter, states: frozenset[TokenState], now: datetime, scanned: int
) -> Arguments:
    return Arguments(
        account_id=account_id,
        before=BEFORE_ALL,
        lowest=0,
        at_most=scanned,
        now=now,
        states=None if states == ALL_STATES else [state.name for state in states],
        created_by=wanted.created_by or None,
        labels=json.dumps(dict(wanted.labels)) if wanted.labels else None,
        display_name_prefix=wanted.display_name_prefix or None,
        permission_set=wanted.permission_set or None,
        project_id=wanted.project_id or None,
        unused_since=wanted.unused_since,
        expires_before=wanted.expires_before,
        obtained_by=f"token:{wanted.obtained_by}" if wanted.obtained_by else None,
        include_descendants=wanted.include_descendants,
    )


def _drivers(wanted: TokenFilter, states: frozenset[TokenState]) -> Iterator[_Driver]:
    """The indexes of which each has every token that matches; the last one is that of the states."""
    if wanted.created_by:
        yield _Driver("creator")
    yield from (_Driver("label", label, value) for label, value in wanted.labels.items())
    if wanted.permission_set:
        yield _Driver("set")
    if wanted.project_id:
        yield _Driver("project")
    if wanted.display_name_prefix:
        yield _Driver("name")
    if states == {TokenState.EXPIRED}:
        yield _Driver("expired")
    if states == {TokenState.DISABLED}:
        yield _Driver("disabled")
    elif states == {TokenState.REVOKED}:
        yield _Driver("revoked")
    else:
        yield _Driver("live" if states <= LIVE_STATES else "all")


async def _furthest(connection: Connection, asked: Arguments, page: Page, drivers: Sequence[_Driver]) -> _Reach:
    """The driver whose next entries reach furthest back; among those that reach the end, the one with the fewest."""
    reaches = []
    for driver in drivers:
        arguments = asked._replace(before=_before(page), label=driver.label, value=driver.value)
        entries, lowest = await read_reach(connection, driver.name, arguments)
        if entries < asked.at_most or lowest is None:
            reaches.append(_Reach(0, entries, driver))
        elif driver.name not in UNORDERED:
            reaches.append(_Reach(lowest, entries, driver))
    return min(reaches)


async def _newest_page(connection: Connection, asked: Arguments, page: Page, reach: _Reach) -> FoundTokens:
    driver = reach.driver
    arguments = asked._replace(
        before=_before(page), lowest=reach.lowest, at_most=page.size, label=driver.label, value=driver.value
    )
    rows = await read_page(connection, driver.name, arguments)
    if len(rows) == page.size:
        return FoundTokens(_found(rows), (str(rows[-1]["ordinal"]),))
    return FoundTokens(_found(rows), (str(reach.lowest),) if reach.lowest else None)


async def _timed_page(connection: Connection, asked: Arguments, page: Page, driver: str) -> FoundTokens:
    after_time, after_ordinal = FIRST_PLACE if page.after is None else _place(page.after)
    asked = asked._replace(after_time=after_time, after_ordinal=after_ordinal)
    scanned = await read_timed_reach(connection, driver, asked)
    if scanned is not None:
        asked = asked._replace(until_time=scanned["at"], until_ordinal=scanned["ordinal"])
    rows = await read_timed_page(connection, driver, asked._replace(at_most=page.size))
    last = rows[-1] if len(rows) == page.size else scanned
    return FoundTokens(_found(rows), None if last is None else _key(last))


def _before(page: Page) -> int:
    return BEFORE_ALL if page.after is None else int(page.after[0])


def _place(key: tuple[str, ...]) -> tuple[datetime, int]:
    return EPOCH + timedelta(microseconds=int(key[0])), int(key[1])


def _key(row: asyncpg.Record) -> tuple[str, str]:
    return str((row["at"] - EPOCH) // timedelta(microseconds=1)), str(row["ordinal"])


def _found(rows: Sequence[asyncpg.Record]) -> tuple[FoundToken, ...]:
    return tuple(FoundToken(row["token_id"], row["ordinal"]) for row in rows)
