"""Fills a database with tokens of every kind by COPY, for `bench/lists.py`: what lists and filters read, and no secrets.

One account has LARGE live tokens; the others have a thousand each, of which a third is revoked. In a big enough
deployment one more has HISTORY revoked tokens and a few live ones among them. The server must not run meanwhile.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from bench import harness
from doorward_server.embedded.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Row: TypeAlias = "tuple[Any, ...]"
Table: TypeAlias = "tuple[str, str, Iterable[Row]]"

LARGE: Final = 10_000
HISTORY: Final = 200_000
OTHERS: Final = 1_000
LARGE_ACCOUNT: Final = "large"
HISTORY_ACCOUNT: Final = "history"
NAMES: Final = (
    "nightly jobs",
    "ingest",
    "ci runner",
    "reports",
    "export",
    "webhooks",
    "backup",
    "crawler",
    "etl",
    "ml",
)
SETS: Final = ("job_admin", "metadata_only", "member")
# Of these each account has a handful.
RARE_CREATOR, RARE_SET, RARE_PROJECT, RARE_NAME = "token:rare", "billing_admin", "rare", "rare one"

MOVE_REVISION: Final = "UPDATE state SET revision = revision + $1"


class Place:
    """Where the token with this index stands: its account, its ordinal there, whether it is revoked."""

    __slots__ = ("account_id", "is_revoked", "ordinal")

    def __init__(self, index: int, count: int) -> None:
        if index < LARGE:
            self.account_id, self.ordinal, self.is_revoked = LARGE_ACCOUNT, index + 1, False
        elif count > LARGE + HISTORY and index < LARGE + HISTORY:
            self.account_id, self.ordinal = HISTORY_ACCOUNT, index - LARGE + 1
            self.is_revoked = index % 100 != 0
        else:
            self.account_id, self.ordinal = f"account_{index // OTHERS:06d}", index % OTHERS + 1
            self.is_revoked = index % 3 == 0


def deployment(data_dir: Path, count: int, cores: frozenset[int]) -> None:
    """A new deployment in `data_dir` with `count` tokens, not running."""
    with harness.doorward(data_dir, cores):
        pass  # the first start makes the schema
    asyncio.run(_fill(data_dir, count))


async def _fill(data_dir: Path, count: int) -> None:
    embedded = EmbeddedPostgres(data_dir)
    await embedded.start()
    try:
        tables = list(_tables(count, datetime.now(UTC)))
        # Every other table over each connection, since two cores fill two tables at once.
        await asyncio.gather(*(_copy(embedded.url, tables[start::2]) for start in range(2)))
        connection = await asyncpg.connect(embedded.url)
        await connection.execute(MOVE_REVISION, count)
        await connection.execute("VACUUM (ANALYZE)")
        await connection.close()
    finally:
        await embedded.stop()


async def _copy(url: str, tables: list[Table]) -> None:
    connection = await asyncpg.connect(url)
    # The rows fit together by construction: no trigger for each of five million references.
    await connection.execute("SET session_replication_role = replica")
    for name, columns, rows in tables:
        await connection.copy_records_to_table(name, columns=columns.split(), records=rows)
    await connection.close()


def _tables(count: int, now: datetime) -> Iterator[Table]:
    yield (
        "tokens",
        "token_id account_id display_name description labels allow_self_rotation disabled create_time update_time"
        " expire_time revoke_time created_by ordinal revision",
        (_token(index, count, now) for index in range(count)),
    )
    yield "grants", "token_id account_id permission_set scope ordinal", _grants(count)
    yield "token_labels", "account_id key value ordinal token_id", _labels(count)
    yield (
        "token_activity",
        "token_id account_id last_used_time idle_since ordinal",
        (_activity(index, count, now) for index in range(count)),
    )
    yield (
        "accounts",
        "account_id display_name plan state create_time update_time live_tokens issued_tokens revision",
        _accounts(count, now),
    )


def _token_id(index: int) -> str:
    # Spread like random ones, so that neighbours in a list are no neighbours in the table's key.
    return f"{index * 2_654_435_761 % 2**40:010x}bench0"


def _labels_of(index: int) -> dict[str, str]:
    return {"team": f"t{index % 20}", "env": "prod" if index % 4 else "test", "batch": f"b{index // 50}"}


def _token(index: int, count: int, now: datetime) -> Row:
    place, is_rare = Place(index, count), index % 997 == 0
    created = now - timedelta(seconds=count - index)
    return (
        _token_id(index),
        place.account_id,
        RARE_NAME if is_rare else f"{NAMES[index % 10]} {index % 1000}",
        "",
        json.dumps(_labels_of(index)),
        False,
        index % 10 == 1,
        created,
        created,
        now + timedelta(hours=index % 2000 - 100) if index % 2 else None,
        now if place.is_revoked else None,
        RARE_CREATOR if is_rare else f"operator:o{index % 10}",
        place.ordinal,
        1,
    )


def _grants(count: int) -> Iterator[Row]:
    for index in range(count):
        place, token_id, is_rare = Place(index, count), _token_id(index), index % 997 == 0
        project_id = RARE_PROJECT if is_rare else f"p{index % 40}"
        yield (
            token_id,
            place.account_id,
            RARE_SET if is_rare else SETS[index % 3],
            "*" if index % 5 == 1 else project_id,
            place.ordinal,
        )
        yield token_id, place.account_id, "read_only", project_id, place.ordinal


def _labels(count: int) -> Iterator[Row]:
    for index in range(count):
        place, token_id = Place(index, count), _token_id(index)
        for key, value in _labels_of(index).items():
            yield place.account_id, key, value, place.ordinal, token_id


def _activity(index: int, count: int, now: datetime) -> Row:
    place = Place(index, count)
    used = now - timedelta(seconds=index * 7919 % 10_000_000)
    return _token_id(index), place.account_id, used, None if place.is_revoked else used, place.ordinal


def _accounts(count: int, now: datetime) -> Iterator[Row]:
    live: dict[str, int] = {}
    issued: dict[str, int] = {}
    for index in range(count):
        place = Place(index, count)
        live[place.account_id] = live.get(place.account_id, 0) + (not place.is_revoked)
        issued[place.account_id] = place.ordinal
    for account_id, ordinal in issued.items():
        yield account_id, "Bench", "enterprise", "active", now, now, live[account_id], ordinal, 1
