"""`storage/token_lists.py`: every combination of filters finds what it should, page by page, from indexes alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any

import pytest

from doorward_server.model import Page, TokenFilter, TokenState
from doorward_server.storage import token_lists
from doorward_server.storage.token_entries import PAGES, REACHES, TIMED_PAGES, TIMED_REACHES, Arguments
from doorward_server.storage.tokens import LOAD, READ, READ_MANY
from tests.support.database import issue_token, opened
from tests.support.issuing import revoke
from tests.support.populations import (
    LABELS,
    NOW,
    a_population,
    copy_population,
    matches,
    oracle,
    seeded,
    some_filter,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from random import Random

    from doorward_server.storage.pool import Connection, Database
    from tests.support.postgres import PostgresServer

FILTERS = (
    "state",
    "live_only",
    "permission_set",
    "project_id",
    "labels",
    "created_by",
    "unused_since",
    "expires_before",
    "display_name_prefix",
)
SIZES = {"acme": 150, "other": 40, "p1": 5}


@contextlib.asynccontextmanager
async def at_leisure(database: Database) -> AsyncIterator[Connection]:
    """A connection without the bound of a hold: these tests fill databases and read many pages."""
    connection = await database.connect()
    await connection.execute("SET statement_timeout = 0")
    try:
        yield connection
    finally:
        await connection.close()


async def pages(
    connection: Connection, account_id: str, wanted: TokenFilter, size: int, scanned: int = token_lists.SCANNED
) -> list[list[str]]:
    """The ids of every page."""
    found: list[list[str]] = []
    page = Page(size)
    while True:
        result = await token_lists.find_page(connection, account_id, wanted, page, NOW, scanned=scanned)
        found.append([token.token_id for token in result.tokens])
        if result.next_key is None:
            return found
        page = Page(size, result.next_key)
        assert len(found) < 1000, "pages do not get on"


@pytest.mark.parametrize("number", [0, 1, 2, 3])
async def test_every_combination_of_filters_finds_what_reading_everything_finds(
    database: Database, number: int
) -> None:
    random = seeded(f"combinations {number}")
    population = a_population(random, SIZES)
    pairs = [*combinations(FILTERS, 0), *combinations(FILTERS, 1), *combinations(FILTERS, 2)]
    more = [tuple(random.sample(FILTERS, random.randrange(3, 6))) for _ in range(30)]
    not_empty = 0
    async with at_leisure(database) as connection:
        await copy_population(connection, population)
        for names in (*pairs, *more):
            wanted = some_filter(random, names)
            size, scanned = random.choice((1, 3, 17, 1000)), random.choice((1, 2, 7, 30, 2000))
            listed = await pages(connection, "acme", wanted, size, scanned)
            assert list(chain.from_iterable(listed)) == oracle(population, "acme", wanted), wanted
            assert all(len(page) <= size for page in listed)
            not_empty += listed != [[]]
    assert not_empty > 30, "the filters are not so narrow that nothing is tested"


async def test_another_accounts_tokens_are_in_no_list(database: Database) -> None:
    population = a_population(seeded("others"), {"acme": 30, "other": 30})
    wanted = (
        *(TokenFilter(permission_set=name) for name in ("member", "job_admin")),
        *(TokenFilter(project_id="p1"), TokenFilter(labels={"team": "data"}), TokenFilter(created_by="token:maker")),
        *(TokenFilter(unused_since=NOW), TokenFilter(expires_before=NOW), TokenFilter(display_name_prefix="n")),
    )
    async with at_leisure(database) as connection:
        await copy_population(connection, population)
        for one in wanted:
            (listed,) = await pages(connection, "acme", one, 1000)
            assert listed
            assert {token_id.partition("-")[0] for token_id in listed} == {"acme"}
            assert await pages(connection, "nobody", one, 1000) == [[]]


# Paging while tokens are issued, revoked, disabled and used.


async def change_something(database: Database, random: Random, ids: list[str]) -> str | None:
    """Issues a token or revokes one, through the door; the one that was revoked."""
    if random.random() < 0.5:
        await issue_token(
            database, f"new{len(ids)}-{random.randrange(10**9)}", "acme", expire_time=NOW, labels={"team": "data"}
        )
        return None
    gone = random.choice(ids)
    await revoke(database, "acme", gone)
    return gone


ORDERS = (
    TokenFilter(),
    TokenFilter(state=TokenState.ACTIVE),
    TokenFilter(labels={"team": "data"}),
    TokenFilter(permission_set="member", display_name_prefix="n"),
    TokenFilter(project_id="p2", created_by="operator:anna"),
    TokenFilter(unused_since=NOW - timedelta(days=5)),
    TokenFilter(expires_before=NOW + timedelta(days=2), labels={"env": "prod"}),
)


@pytest.mark.parametrize("wanted", ORDERS, ids=range(len(ORDERS)))
@pytest.mark.parametrize("size", [1, 4])
async def test_paging_skips_and_repeats_nothing_while_tokens_are_issued_and_revoked(
    database: Database, wanted: TokenFilter, size: int
) -> None:
    random = seeded(f"moving {wanted} {size}")
    population = a_population(random, {"acme": 80})
    live = [token.token_id for token in population if token.revoke_time is None]
    seen: list[str] = []
    changed: set[str] = set()
    async with at_leisure(database) as connection:
        await copy_population(connection, population)
    page: Page | None = Page(size)
    while page is not None:
        async with at_leisure(database) as connection:
            found = await token_lists.find_page(connection, "acme", wanted, page, NOW, scanned=5)
        seen += [token.token_id for token in found.tokens]
        page = None if found.next_key is None else Page(size, found.next_key)
        changed |= {await change_something(database, random, live) or ""}

    untouched = [token_id for token_id in oracle(population, "acme", wanted) if token_id not in changed]
    assert [token_id for token_id in seen if token_id in untouched] == untouched, "none is skipped, and in order"
    assert len(seen) == len(set(seen)), "none is repeated"
    assert untouched


# What is read, at 25,000 tokens of which 20,000 are in one account and most of those revoked.

SIZES_OF_CROWD = {"acme": 20_000} | {f"account{number}": 500 for number in range(10)}


@pytest.fixture(scope="module")
def crowded_url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """A database that no test of these changes."""

    async def fill() -> None:
        random = seeded("crowded")
        population = [
            replace(token, created_by="token:rare", display_name="rare", labels={**token.labels, "once": "yes"})
            if token.ordinal % 6000 == 17
            else token
            for token in a_population(random, SIZES_OF_CROWD, live=0.2)
        ]
        async with opened(url) as database, at_leisure(database) as connection:
            await copy_population(connection, population)

    with asyncio.Runner() as runner:
        name = runner.run(postgres_server.create_database(template=migrated_template))
        url = postgres_server.url(name)
        runner.run(fill())
        yield url
        runner.run(postgres_server.drop_database(name))


@pytest.fixture
async def crowded(crowded_url: str) -> AsyncIterator[Database]:
    """The same, opened."""
    async with opened(crowded_url) as database:
        yield database


ASKED = Arguments(
    account_id="acme",
    before=2**63 - 1,
    lowest=0,
    at_most=100,
    now=NOW,
    states=["ACTIVE", "DISABLED", "EXPIRED"],
    created_by="operator:anna",
    labels='{"team": "data"}',
    display_name_prefix="nightly",
    permission_set="member",
    project_id="p1",
    unused_since=NOW - timedelta(days=5),
    expires_before=NOW + timedelta(days=5),
    label="team",
    value="data",
    obtained_by="token:maker",
    include_descendants=True,
)
DRIVEN_BY = {
    "all": {"tokens_by_account"},
    "live": {"tokens_live"},
    "disabled": {"tokens_disabled"},
    "revoked": {"tokens_revoked"},
    "creator": {"tokens_by_creator"},
    "label": {"token_labels_by_value"},
    "set": {"grants_by_set"},
    "project": {"grants_by_project", "grants_on_all"},
    "name": {"tokens_by_name"},
    "expired": {"tokens_expiring"},
    "obtained": {"token_secrets_by_recipient"},
    "unused": {"token_activity_by_idleness"},
    "expiring": {"tokens_expiring"},
}
STATEMENTS = [
    (name, sql) for statements in (REACHES, PAGES, TIMED_REACHES, TIMED_PAGES) for name, sql in statements.items()
]


def literal(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, list):
        return f"ARRAY[{', '.join(literal(item) for item in value)}]"
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return f"'{text}'"


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


async def plan_of(connection: Connection, mode: str, sql: str, values: Sequence[object]) -> list[dict[str, Any]]:
    await connection.execute(f"SET plan_cache_mode = force_{mode}_plan; PREPARE planned AS {sql}")
    given = ", ".join(literal(value) for value in values)
    explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE planned ({given})")
    await connection.execute("DEALLOCATE planned; RESET plan_cache_mode")
    return list(nodes_of(json.loads(explained)[0]["Plan"]))


@pytest.mark.parametrize("mode", ["custom", "generic"])
async def test_every_statement_is_driven_by_its_own_index(crowded: Database, mode: str) -> None:
    assert set(DRIVEN_BY) == {name for name, _ in STATEMENTS}
    async with at_leisure(crowded) as connection:
        for name, sql in STATEMENTS:
            nodes = await plan_of(connection, mode, sql, ASKED)
            used = {node["Index Name"] for node in nodes if "Index Name" in node}
            scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
            assert used >= DRIVEN_BY[name], (name, used)
            assert not scanned, (name, scanned)
            joins = {node["Node Type"] for node in nodes} & {"Hash Join", "Merge Join"}
            assert name == "obtained" or not joins, "a join by key looks at no more than the entries"


@pytest.mark.parametrize("mode", ["custom", "generic"])
async def test_records_and_loads_are_read_by_the_tokens_id(crowded: Database, mode: str) -> None:
    many = [f"acme-{number}" for number in range(1, 101)]
    async with at_leisure(crowded) as connection:
        for sql, asked in ((READ_MANY, many), (READ, many[0]), (LOAD, many[0])):
            nodes = await plan_of(connection, mode, sql, [asked])
            scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
            assert scanned <= {"state", "accounts"}, "tables of a page or two; the rest by key"


READ_ROWS = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes"
SCANNED = 200
# What one page may read for each of SCANNED entries: some drivers tell how far they reach, the entry, its token, and what
# of grants and activity is asked about.
READ_FOR_EACH = 12


async def reads_of(database: Database, wanted: TokenFilter) -> tuple[int, int]:
    """How many pages of 100 a list has, and how many entries of indexes its first page reads."""
    async with at_leisure(database) as connection:
        found = await pages(connection, "acme", wanted, 100, SCANNED)
        await connection.execute("SELECT pg_stat_force_next_flush()")
        before = await connection.fetchval(READ_ROWS)
        await token_lists.find_page(connection, "acme", wanted, Page(100), NOW, scanned=SCANNED)
        await connection.execute("SELECT pg_stat_force_next_flush()")
        return len(found), await connection.fetchval(READ_ROWS) - before


SELECTIVE = (
    TokenFilter(created_by="token:rare"),
    TokenFilter(labels={"once": "yes"}),
    TokenFilter(display_name_prefix="rare"),
    TokenFilter(created_by="token:rare", permission_set="member", state=TokenState.REVOKED),
    TokenFilter(labels={"once": "yes", "team": "data"}, project_id="p1"),
    TokenFilter(labels={"team": "data"}, display_name_prefix="rare"),
)


@pytest.mark.parametrize("wanted", SELECTIVE, ids=range(len(SELECTIVE)))
async def test_what_one_index_finds_is_one_page_that_reads_little(crowded: Database, wanted: TokenFilter) -> None:
    page_count, rows = await reads_of(crowded, wanted)
    assert page_count == 1
    assert rows < READ_FOR_EACH * SCANNED


BROAD = (
    TokenFilter(labels={"team": "data", "env": "prod"}, permission_set="metadata_only", state=TokenState.DISABLED),
    TokenFilter(labels={"team": "data"}, created_by="operator:anna", permission_set="member", project_id="p9"),
    TokenFilter(unused_since=NOW - timedelta(days=1), created_by="token:nobody"),
    TokenFilter(expires_before=NOW + timedelta(days=5), labels={"team": "nobody"}),
    TokenFilter(display_name_prefix="nightly", project_id="p9", state=TokenState.REVOKED),
)


@pytest.mark.parametrize("wanted", BROAD, ids=range(len(BROAD)))
async def test_no_page_reads_the_whole_account(crowded: Database, wanted: TokenFilter) -> None:
    page_count, rows = await reads_of(crowded, wanted)
    assert rows < READ_FOR_EACH * SCANNED
    assert 1 < page_count < SIZES_OF_CROWD["acme"] / SCANNED + 3


async def test_the_oracle_knows_every_label(database: Database) -> None:
    """The filters of these tests are over values that tokens have."""
    population = a_population(seeded("labels"), {"acme": 200})
    for key, values in LABELS.items():
        for value in values:
            assert any(matches(token, TokenFilter(labels={key: value})) for token in population)
