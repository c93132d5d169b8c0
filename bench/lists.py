"""What a page of ListTokens takes at 10,000 and at 1,000,000 tokens, 10,000 of them in one account, filter by filter.

The use case itself, on the embedded PostgreSQL of each deployment, in alternating rounds; gRPC and protobuf would add the
same to both. A second table has an account with a long history of revoked tokens. Called by `python -m bench lists`
(design section 6).
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import harness, list_rows
from bench.report import Table, undisturbed
from doorward_server.embedded.postgres import EmbeddedPostgres
from doorward_server.model import Caller, CallerKind, OperatorRole, Page, TokenFilter, TokenState
from doorward_server.service.catalogs import Catalogs
from doorward_server.service.find_tokens import FindTokens
from doorward_server.storage.pool import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from bench.harness import Cores

SIZES: Final = (10_000, 1_000_000)
ROUNDS: Final = 25
PAGE: Final = 100
MOST_TIMES: Final = 3.0
HOLD_MS: Final = 5_000
WHO: Final = Caller(CallerKind.OPERATOR, "bench", OperatorRole.ADMIN)


def filters(now: datetime) -> dict[str, TokenFilter]:
    """What is asked: each filter common and rare, some together, and what matches nothing."""
    rare, since, before = list_rows.RARE_CREATOR, now - timedelta(days=20), now + timedelta(days=5)
    return {
        "none": TokenFilter(),
        **{f"state {state.name.lower()}": TokenFilter(state=state) for state in TokenState},
        "permission set": TokenFilter(permission_set="job_admin"),
        "permission set, rare": TokenFilter(permission_set=list_rows.RARE_SET),
        "project": TokenFilter(project_id="p3"),
        "project, rare": TokenFilter(project_id=list_rows.RARE_PROJECT),
        "label": TokenFilter(labels={"team": "t3"}),
        "label, rare": TokenFilter(labels={"batch": "b7"}),
        "two labels": TokenFilter(labels={"team": "t3", "env": "prod"}),
        "created by": TokenFilter(created_by="operator:o3"),
        "created by, rare": TokenFilter(created_by=rare),
        "unused since": TokenFilter(unused_since=since),
        "expires before": TokenFilter(expires_before=before),
        "name": TokenFilter(display_name_prefix="nightly"),
        "name, rare": TokenFilter(display_name_prefix="rare"),
        "active, label and set": TokenFilter(
            state=TokenState.ACTIVE, labels={"team": "t4"}, permission_set="metadata_only"
        ),
        "unused, rare creator": TokenFilter(unused_since=now - timedelta(seconds=1), created_by=rare),
        "expiring, rare label": TokenFilter(expires_before=before, labels={"batch": "b7"}),
        "nothing: set and project": TokenFilter(live_only=True, permission_set="member", project_id="p90"),
    }


@dataclass
class Size:
    """One deployment's use case, and what its pages took, round by round, in milliseconds."""

    count: int
    find: FindTokens
    pages_ms: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    async def ask(self, account_id: str, name: str, wanted: TokenFilter, page: Page) -> Page | None:
        """Reads one page, takes its time, and says where the next one begins."""
        began = time.perf_counter()
        found = await self.find.list_tokens(WHO, account_id, wanted, page)
        self.pages_ms.setdefault((account_id, name), []).append((time.perf_counter() - began) * 1e3)
        return None if found.next_key is None else Page(PAGE, found.next_key)

    def page_ms(self, account_id: str, name: str) -> float:
        return undisturbed(self.pages_ms[account_id, name])


def run(cores: Cores) -> list[Table]:
    """Fills, asks."""
    with tempfile.TemporaryDirectory(prefix="doorward-bench-") as directory:
        for count in SIZES:
            list_rows.deployment(Path(directory) / str(count), count, cores.server)
        sizes = asyncio.run(_ask(Path(directory), cores))
    few, many = sizes
    asked = filters(datetime.now(UTC))
    return [_table(few, many, asked), _history(many, asked)]


@contextlib.asynccontextmanager
async def _serving(directory: Path, count: int, cores: Cores) -> AsyncIterator[Size]:
    embedded = EmbeddedPostgres(directory / str(count))
    with harness.running_on(cores.server):
        await embedded.start()
    database = Database(embedded.url, hold_ms=HOLD_MS)
    await database.open()
    try:
        yield Size(count, FindTokens(database, Catalogs()))
    finally:
        await database.close()
        await embedded.stop()


async def _ask(directory: Path, cores: Cores) -> list[Size]:
    asked = filters(datetime.now(UTC))
    async with contextlib.AsyncExitStack() as stack:
        sizes = [await stack.enter_async_context(_serving(directory, count, cores)) for count in SIZES]
        for number in range(ROUNDS):
            for size in sizes if number % 2 else sizes[::-1]:
                for name, wanted in asked.items():
                    await _two_pages(size, list_rows.LARGE_ACCOUNT, name, wanted)
                    if size.count == SIZES[-1]:
                        await _two_pages(size, list_rows.HISTORY_ACCOUNT, name, wanted)
        return sizes


async def _two_pages(size: Size, account_id: str, name: str, wanted: TokenFilter) -> None:
    second = await size.ask(account_id, name, wanted, Page(PAGE))
    if second is not None:
        await size.ask(account_id, name, wanted, second)


def _table(few: Size, many: Size, asked: Mapping[str, TokenFilter]) -> Table:
    account_id = list_rows.LARGE_ACCOUNT
    table = Table(
        f"A page of {PAGE} tokens of an account with {list_rows.LARGE:,}, by filter, ms; the least disturbed fifth of "
        f"{2 * ROUNDS} pages",
        ("filter", *(f"{size.count:,} tokens" for size in (few, many)), "times", "target"),
    )
    for name in asked:
        before, after = few.page_ms(account_id, name), many.page_ms(account_id, name)
        table.add(name, f"{before:.2f}", f"{after:.2f}", f"{after / before:.2f}", f"≤ {MOST_TIMES:.0f}")
        table.require(
            after <= MOST_TIMES * before,
            f"a page by {name} took {after / before:.2f} times as long at {many.count:,} tokens",
        )
    return table


def _history(many: Size, asked: Mapping[str, TokenFilter]) -> Table:
    table = Table(
        f"The same of an account with {list_rows.HISTORY:,} tokens, of which all but each hundredth are revoked",
        ("filter", f"{many.count:,} tokens"),
    )
    for name in asked:
        table.add(name, f"{many.page_ms(list_rows.HISTORY_ACCOUNT, name):.2f}")
    return table
