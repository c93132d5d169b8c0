"""`storage/token_permissions.py`: exactly the live tokens with such a grant, page by page, from indexes alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from doorward_server.model import Grant, Page, TokenState
from doorward_server.storage import token_permissions
from doorward_server.storage.token_permissions import ALL_PROJECTS, GRANTS_REACH, LIVE_REACH, PAGES
from tests.support.populations import NOW, PROJECTS, SETS, a_population, copy_population, seeded, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from doorward_server.model import Token
    from doorward_server.storage.pool import Connection, Database

SIZES = {"acme": 120, "other": 60}


async def pages(
    connection: Connection, sets: Sequence[str], scopes: Sequence[str], size: int, scanned: int
) -> list[list[str]]:
    """The ids of every page of acme's."""
    found: list[list[str]] = []
    page = Page(size)
    while True:
        result = await token_permissions.find_holders(connection, "acme", sets, scopes, page, NOW, scanned=scanned)
        found.append([token.token_id for token in result.tokens])
        if result.next_key is None:
            return found
        page = Page(size, result.next_key)
        assert len(found) < 1000, "pages do not get on"


def holders(population: Sequence[Token], sets: Sequence[str], scopes: Sequence[str]) -> list[str]:
    """The same by reading everything."""
    return [
        token.token_id
        for token in reversed(population)
        if token.account_id == "acme"
        and state_of(token) is TokenState.ACTIVE
        and any(
            grant.permission_set in sets and (ALL_PROJECTS if scope is None else scope) in scopes
            for grant in token.grants
            for scope in (grant.project_ids or (None,))
        )
    ]


@pytest.mark.parametrize("seed", range(8))
async def test_every_page_size_finds_what_reading_everything_does(database: Database, seed: int) -> None:
    random = seeded(f"permissions {seed}")
    population = a_population(random, SIZES, live=random.choice((0.05, 0.5, 1.0)))
    async with database.reading() as connection:
        await copy_population(connection, population)
        for _ in range(25):
            sets = random.sample((*SETS, "unheld"), random.randrange(0, 5))
            scopes = [ALL_PROJECTS, *random.sample((*PROJECTS, "p9"), random.randrange(0, 2))]
            size, scanned = random.choice((1, 3, 17, 1000)), random.choice((1, 2, 7, 30, 2000))

            listed = await pages(connection, sets, scopes, size, scanned)

            found = [token_id for page in listed for token_id in page]
            assert found == holders(population, sets, scopes), (sets, scopes, size, scanned)
            assert all(len(page) <= size for page in listed)


async def test_a_token_that_is_issued_or_revoked_between_two_pages_moves_no_other(database: Database) -> None:
    population = [
        replace(token, disabled=False, expire_time=None, revoke_time=None)
        for token in a_population(seeded("concurrent"), {"acme": 40})
    ]
    async with database.reading() as connection:
        await copy_population(connection, population)
        expected = holders(population, SETS, [ALL_PROJECTS, "p1"])
        page, seen = Page(5), list[str]()
        while True:
            result = await token_permissions.find_holders(
                connection, "acme", SETS, [ALL_PROJECTS, "p1"], page, NOW, scanned=30
            )
            seen += [token.token_id for token in result.tokens]
            if result.next_key is None:
                break
            page = Page(5, result.next_key)
            # The newest one that was shown goes, and one that is newer still comes.
            await connection.execute("UPDATE tokens SET revoke_time = now() WHERE token_id = $1", seen[0])
            await connection.execute(
                "INSERT INTO grants SELECT 'acme-1', 'acme', 'member', $1, 1 ON CONFLICT DO NOTHING", "p3"
            )

        assert seen == expected


async def test_a_page_ends_where_it_has_looked_at_enough(database: Database) -> None:
    """Every second token is live and without the sets, the others have one and are revoked: neither makes a page read on.

    Nor does a set that only the oldest have, of which as many entries as a page may look at reach to the end.
    """
    population = [
        replace(
            token,
            disabled=False,
            expire_time=None,
            revoke_time=NOW if token.ordinal % 2 else None,
            grants=(Grant(_set_of(token.ordinal), None),),
        )
        for token in a_population(seeded("sparse"), {"acme": 400})
    ]
    async with database.reading() as connection:
        await copy_population(connection, population)
        for sets in (["member"], ["member", "billing_admin"]):
            listed = await pages(connection, sets, [ALL_PROJECTS, *PROJECTS], 10, 50)

            assert listed == [[] for _ in listed]
            assert 4 <= len(listed) <= 14, sets


def _set_of(ordinal: int) -> str:
    if not ordinal % 2:
        return "job_admin"
    return "billing_admin" if ordinal < 50 else "member"


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


@pytest.mark.parametrize("mode", ["custom", "generic"])
async def test_pages_read_the_indexes_that_are_meant_for_them(database: Database, mode: str) -> None:
    sizes = {f"a{number}": 500 for number in range(20)} | {"acme": 3000}
    population = await asyncio.to_thread(a_population, seeded("plans"), sizes)
    page = ("text, bigint, bigint, timestamptz, text[], text[], bigint", "'acme', 3000, 2000, '2026-11-24Z'")
    wanted = "'{member,job_admin}', '{*,p1}', 20"
    statements = {
        "live reach": (LIVE_REACH, "text, bigint, bigint", "'acme', 3000, 500", {"tokens_live"}),
        "reach": (
            GRANTS_REACH,
            "text, bigint, text[], bigint",
            "'acme', 3000, '{member,job_admin}', 500",
            {"grants_by_set"},
        ),
        "live": (PAGES["live"], page[0], f"{page[1]}, {wanted}", {"tokens_live", "grants_pkey"}),
        "granted": (PAGES["granted"], page[0], f"{page[1]}, {wanted}", {"grants_by_set", "tokens_by_account"}),
    }
    async with database.reading() as connection:
        await copy_population(connection, population)
        for name, (sql, types, values, meant) in statements.items():
            await connection.execute(f"SET plan_cache_mode = force_{mode}_plan; PREPARE planned ({types}) AS {sql}")
            explained = await connection.fetchval(
                f"EXPLAIN (ANALYZE, FORMAT JSON, COSTS OFF, TIMING OFF) EXECUTE planned ({values})"
            )
            await connection.execute("DEALLOCATE planned; RESET plan_cache_mode")
            nodes = list(nodes_of(json.loads(explained)[0]["Plan"]))

            assert {node["Index Name"] for node in nodes if "Index Name" in node} == meant, (name, nodes)
            assert not [node for node in nodes if node["Node Type"] == "Seq Scan"], name
