"""A real PgBouncer with transaction pooling between Doorward and PostgreSQL: all works, and the poll carries the news."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from doorward_server.embedded.programs import program_environ
from tests.cluster.history import OK
from tests.support.nodes import DATABASE, ROLE
from tests.support.pair import first_decision
from tests.support.server import PATIENCE_S
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.pair import Pair

PORT: Final = 6432
# Fewer than two servers have lines of their own: with session pooling the second would wait for the first to end.
SERVER_CONNECTIONS: Final = 4
INI: Final = """\
[databases]
{database} = host={sockets} port=5432 dbname={database} user={role}
[pgbouncer]
listen_port = {port}
unix_socket_dir = {directory}
auth_type = any
pool_mode = transaction
default_pool_size = {size}
"""


def find_pgbouncer() -> Path | None:
    """Debian puts it where only root's PATH leads."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    return Path(found) if found else None


@pytest.fixture
def pooled_url(lone: Pair, tmp_path: Path) -> Iterator[str]:
    """The URL of the lone primary through a PgBouncer of the test's own."""
    program = find_pgbouncer()
    if program is None:
        pytest.skip("PgBouncer is not installed, which this test needs (issue 5): apt-get install pgbouncer")
    directory = lone.directory / "pgbouncer"
    directory.mkdir(mode=0o700)
    ini, log = directory / "pgbouncer.ini", directory / "pgbouncer.log"
    ini.write_text(INI.format(database=DATABASE, sockets=lone.primary.sockets, role=ROLE, port=PORT,
                              directory=directory, size=SERVER_CONNECTIONS))  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            lone.primary.identity.command(program, str(ini)), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=program_environ(), cwd="/", start_new_session=True,
        )  # fmt: skip
    try:
        eventually(lambda: _takes_connections(directory / f".s.PGSQL.{PORT}", process, log))
        yield f"postgresql:///{DATABASE}?host={directory}&port={PORT}&user={ROLE}&sslmode=disable"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def _takes_connections(path: Path, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    with socket.socket(socket.AF_UNIX) as tried:
        return tried.connect_ex(str(path)) == 0


def test_under_transaction_pooling_a_revocation_is_known_everywhere_when_it_returns(
    lone: Pair, pooled_url: str
) -> None:
    a, b = lone.servers.serve(2, pooled_url, hold_s=2.0, arguments=("--database-pooler", "transaction"))
    subject = a.subject()
    for client in (a, b):
        assert first_decision(client, subject) == "ALLOWED"

    revoked = a.begin_revoke(subject).result()

    assert (revoked.answered, revoked.confirmed, revoked.expired) == (OK, 2, 0)
    for client in (a, b):
        assert first_decision(client, subject) == "TOKEN_REVOKED"
    sessions = lone.primary.fetch("SELECT query FROM pg_stat_activity WHERE datname = $1", DATABASE)
    assert 0 < len(sessions) <= SERVER_CONNECTIONS
    assert not [query for (query,) in sessions if query.startswith("LISTEN")]
    lone.verify(lone.primary)
