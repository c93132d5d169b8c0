"""The database behind a running server, for what no RPC shows: rows, locks, and what any change would leave.

before = rows.footprint()                      # what any change, also an audit event, would move
with rows.holding("LOCK TABLE replicas"): ...  # the server waits
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FOOTPRINT = """
SELECT revision, encode(audit_head, 'hex'), (SELECT count(*) FROM changes), (SELECT count(*) FROM audit_events),
       (SELECT count(*) FROM accounts), (SELECT count(*) FROM projects), (SELECT count(*) FROM operators),
       (SELECT count(*) FROM tokens), (SELECT count(*) FROM token_secrets), (SELECT count(*) FROM grants),
       (SELECT count(*) FROM token_labels), (SELECT count(*) FROM token_activity), (SELECT sum(live_tokens) FROM accounts)
FROM state
"""
TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"


class Rows:
    """SQL on a server's own database, for what no RPC shows. Whoever makes one closes it."""

    def __init__(self, data_dir: Path) -> None:
        self._url_file = data_dir / "database.url"
        # A loop of its own, run for one statement at a time: tests that use this are plain functions.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    def close(self) -> None:
        """Ends its connection."""
        if self._connection is not None:
            self._connection.terminate()
        self._runner.close()

    def fetch(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """The rows of one statement. A server that was restarted has another PostgreSQL, and gets another connection."""

        async def run() -> list[tuple[Any, ...]]:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            return [tuple(row) for row in await self._connection.fetch(sql, *arguments)]

        return self._runner.run(run())

    @contextlib.contextmanager
    def holding(self, sql: str) -> Iterator[None]:
        """Runs a statement and keeps its transaction open, with the locks that it took, to the end of the block."""
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            connection = runner.run(self._connect())
            try:
                runner.run(connection.execute(f"BEGIN; {sql}"))
                yield
            finally:
                runner.run(connection.close())

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        # No statement is kept: tests alter tables.
        return await asyncpg.connect(self._url_file.read_text(encoding="utf-8").strip(), statement_cache_size=0)

    def footprint(self) -> tuple[Any, ...]:
        """What any change would move: the log's end, the audit chain's head, the numbers of rows."""
        (row,) = self.fetch(FOOTPRINT)
        return row

    def dump(self) -> str:
        """Every row of every table as text."""
        tables: Sequence[str] = [name for (name,) in self.fetch(TABLES)]
        assert {"tokens", "token_secrets", "operators", "state"} <= set(tables)
        return "\n".join(
            f"{name}: {text}"
            for name in sorted(tables)
            for (text,) in self.fetch(f'SELECT "{name}"::text FROM "{name}"')  # noqa: S608 - names from the schema
        )
