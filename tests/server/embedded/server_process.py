"""Lives as a server does around an embedded PostgreSQL: `server_process.py DIR`, run by the tests beside it.

Says one line, `ready URL` or `unavailable SENTENCE` (status 1), and one more when PostgreSQL ends by itself, `ended
SENTENCE` (status 3). Stops at SIGTERM; with `--once` as soon as it has been ready.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import asyncpg
import structlog

from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.postgres import EmbeddedPostgres


def say(line: str) -> None:
    sys.stdout.buffer.write(line.encode(errors="surrogateescape") + b"\n")
    sys.stdout.flush()


async def live(directory: Path, *, once: bool) -> int:
    embedded = EmbeddedPostgres(directory)
    try:
        await embedded.start()
    except EmbeddedUnavailable as error:
        say(f"unavailable {error}")
        return 1
    try:
        connection = await asyncpg.connect(embedded.url)
        assert await connection.fetchval("SELECT current_user") == "doorward"
        await connection.close()
        watched = asyncio.create_task(embedded.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, watched.cancel)
        say(f"ready {embedded.url}")
        if once:
            watched.cancel()
        await watched
    except asyncio.CancelledError:
        return 0
    except EmbeddedUnavailable as error:
        say(f"ended {error}")
        return 3
    finally:
        await embedded.stop()
    return 0


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    sys.exit(asyncio.run(live(Path(sys.argv[-1]), once="--once" in sys.argv)))
