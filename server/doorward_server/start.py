"""What a server does before it serves: its keys, its database, its first credentials (design sections 4, 6 and 9).

Called by `app.py`, and by `workers/parent.py` once for all its workers; so is what both tell whoever started them.
Everything here may be repeated: a process that was killed in between starts as if it were the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from doorward.core.secret import Secret, SecretKind, find_secret
from doorward_server.catalog.load import builtin_text
from doorward_server.credentials import pepper
from doorward_server.credentials.certificates import CertificateInvalid, Certificates
from doorward_server.credentials.pepper_file import PepperInvalid
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.postgres import EmbeddedPostgres
from doorward_server.errors import Refused
from doorward_server.model import OperatorRole
from doorward_server.service.operators import create_operators, has_operators, new_operator
from doorward_server.storage import state
from doorward_server.storage.failures import DatabaseUnusable, StatementRefused
from doorward_server.storage.migrate import migrate, seed
from doorward_server.storage.pool import Database
from doorward_server.tracing import TracingUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.settings import Settings

__all__ = [
    "Prepared",
    "StartRefused",
    "banner",
    "cannot_listen",
    "exit_status",
    "first_credentials",
    "open_database",
    "open_ring",
    "prepared",
    "run",
]

log = structlog.get_logger()

FIRST: Final = (("operator.token", OperatorRole.ADMIN), ("caller.token", OperatorRole.CALLER))


class StartRefused(Exception):
    """This server must not start as it is. The text is for whoever starts it: what is wrong, and the way out."""


# Why a server cannot run; the text of each is for whoever started it.
UNABLE: Final = (
    StartRefused,
    CertificateInvalid,
    DatabaseUnusable,
    EmbeddedUnavailable,
    PepperInvalid,
    TracingUnavailable,
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a server stands on. `embedded` is the PostgreSQL behind `url`, if it is our own."""

    url: str
    ring: PepperRing
    database: Database
    embedded: EmbeddedPostgres | None
    certificates: Certificates | None


@contextlib.asynccontextmanager
async def prepared(settings: Settings, parameters: Mapping[str, str] | None = None) -> AsyncIterator[Prepared]:
    """The database, migrated and seeded, with the keys that go with it; the embedded PostgreSQL runs for the block.

    `parameters` are for the embedded one; with that, the first credentials are written, too.

    Raises:
        StartRefused, CertificateInvalid, DatabaseUnusable, EmbeddedUnavailable, PepperInvalid: it cannot start; the text
            says why.
    """
    certificates = Certificates.of(settings)
    async with contextlib.AsyncExitStack() as stack:
        embedded = None
        if settings.database_url is not None:
            url = settings.database_url.get_secret_value()
        else:
            embedded = EmbeddedPostgres(settings.data_dir, parameters=parameters)
            await embedded.start()
            stack.push_async_callback(embedded.stop)
            url = embedded.url
        await _require_no_lost_keys(settings, url)
        ring = open_ring(settings)
        database = await open_database(settings, url, ring)
        stack.push_async_callback(database.close)
        if embedded is not None:
            await first_credentials(database, ring, settings.data_dir)
        yield Prepared(url, ring, database, embedded, certificates)


def open_ring(settings: Settings) -> PepperRing:
    """The pepper keys; with the embedded default they are made on the first start.

    Raises:
        PepperInvalid: the file is missing, open to others, or wrong.
    """
    path = settings.pepper_path
    if settings.pepper_file is None and settings.database_url is None and not path.exists():
        return pepper.create(path)
    return pepper.load(path)


async def open_database(settings: Settings, url: str, ring: PepperRing) -> Database:
    """The database, migrated, seeded and known to go with these keys.

    Raises:
        DatabaseUnusable: it cannot be reached or used.
        StartRefused: the pepper keys are not those of this database.
    """
    database = await _migrated(settings, url)
    try:
        own = ring.fingerprints()
        await seed(database, builtin_text(), {ring.current_id: own[ring.current_id]})
        await _require_keys(database, ring, settings)
    except BaseException:
        await database.close()
        raise
    return database


async def _migrated(settings: Settings, url: str) -> Database:
    database = Database(
        url,
        hold_ms=settings.hold_ms,
        pool_size=settings.database_pool,
        pooler=settings.database_pooler,
        accept_failover_loss=settings.accept_failover_loss,
    )
    try:
        applied = await migrate(database)
    except StatementRefused as refused:
        raise StartRefused(
            f"{refused} Doorward makes its tables itself: its database role must own the database, or have the right to "
            "create tables in the schema public."
        ) from None
    except Refused as refused:
        raise StartRefused(f"{refused} Is it running, and does --database-url lead to it?") from None
    if applied:
        log.info("database_migrated", migrations=applied)
    await database.open()
    return database


async def _require_no_lost_keys(settings: Settings, url: str) -> None:
    """A new key file is made for a new deployment only: it would hide that the one of this deployment was lost."""
    path = settings.pepper_path
    if settings.pepper_file is not None or settings.database_url is not None or path.exists():
        return
    database = await _migrated(settings, url)
    try:
        async with database.reading() as connection:
            is_deployed = await state.read_state(connection) is not None
            known = await state.read_fingerprints(connection) if is_deployed else {}
    finally:
        await database.close()
    if is_deployed:
        commands = "; ".join(f"doorward pepper declare-lost {key_id}" for key_id in known)
        raise StartRefused(
            f"{path} is missing, but this deployment was made with the keys in it. Put the file back, from a backup or "
            "from another server; a new one would not fit the digests in the database. If it is lost for good: "
            f"{commands or 'doorward pepper add'}."
        )


async def first_credentials(database: Database, ring: PepperRing, directory: Path) -> None:
    """Writes the credentials of the first admin and the first caller, if no operator was ever made.

    The files come first, then both operators in one change: killed in between, the next start takes what the files say.
    """
    if await has_operators(database):
        return
    wanted = []
    for name, role in FIRST:
        secret = _written(directory / name)
        new = new_operator(ring, role, f"first {role.name.lower()}", secret)
        if secret is None:
            _write(directory / name, new.secret)
        wanted.append(new)
    await create_operators(database, wanted)
    log.info("first_credentials_written", directory=str(directory), files=[name for name, _ in FIRST])


async def _require_keys(database: Database, ring: PepperRing, settings: Settings) -> None:
    own = ring.fingerprints()
    async with database.reading() as connection:
        known = await state.read_fingerprints(connection)
        for key_id, fingerprint in known.items():
            if own.get(key_id) != fingerprint:
                what = "lacks" if key_id not in own else "has another key under the id of"
                way_out = (
                    f" If the key is lost for good: doorward pepper declare-lost {key_id}." if what == "lacks" else ""
                )
                raise StartRefused(
                    f"{settings.pepper_path} {what} pepper key {key_id!r}, which this database was used with; without it "
                    "no digest made under it can be compared. Give this server the key file of the others (--pepper-file)."
                    f"{way_out}"
                )
        await state.add_fingerprint(connection, ring.current_id, own[ring.current_id])


def cannot_listen(listen: str, why: str, option: str = "--listen") -> str:
    """For an error's sentence."""
    return f"cannot listen on {listen}: {why}; choose another one with {option}"


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a server in an event loop of its own: uvloop's where there is one, which makes a call cheaper by an eighth."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not made for every Python
    except ImportError:
        return None
    return uvloop.new_event_loop


def exit_status(work: Coroutine[Any, Any, None]) -> int:
    """Runs a server to its end. 0: it was told to stop; 2: it cannot run, and said why; 1: something of ours failed."""
    try:
        run(work)
    except UNABLE as refused:
        sys.stderr.write(f"doorward: {refused}\n")
        return 2
    except ExceptionGroup as failures:
        unable, others = failures.split(UNABLE)
        for failure in unable.exceptions if unable else ():
            sys.stderr.write(f"doorward: {failure}\n")
        if others is None:
            return 2
        log.error("server_failed", exc_info=others)
        return 1
    return 0


def banner(address: str, settings: Settings, *, embedded_default: bool) -> str:
    """What a person sees when the server is up: where it listens, where the credentials are, what to try."""
    lines = [f"Doorward listens on {address}"]
    if embedded_default:
        token = settings.data_dir / "operator.token"
        program = sys.argv[0] if Path(sys.argv[0]).name == "doorward" else "doorward"
        # The credential goes through the environment: arguments are visible to every user of the machine.
        variable, header = f'DOORWARD_TOKEN="$(cat {token})"', "'authorization: Bearer ${DOORWARD_TOKEN}'"
        options, plain = _tls_options(settings)
        lines += [
            f"Admin credential:   {token}",
            f"Caller credential:  {settings.data_dir / 'caller.token'}",
            "Try:",
            f"  {program} replicas --address {address} --token-file {token}{options}",
            f"  {variable} grpcurl {plain} -expand-headers -H {header} {address} doorward.v1.SystemAdmin/ListReplicas",
        ]
    return "\n".join(lines) + "\n"


def _tls_options(settings: Settings) -> tuple[str, str]:
    """What `doorward` and `grpcurl` are told of the connection. Whose certificate it is, only the operator knows."""
    if settings.tls_cert is None:
        return "", "-plaintext"
    own = settings.tls_client_ca is not None
    options = " --tls-ca CA.pem" + (" --tls-cert YOURS.pem --tls-key YOURS.key" if own else "")
    return options, "-cacert CA.pem" + (" -cert YOURS.pem -key YOURS.key" if own else "")


def _written(path: Path) -> Secret | None:
    """The credential of an earlier start that did not get further."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return find_secret(text, SecretKind.OPERATOR)


def _write(path: Path, secret: Secret) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{secret.reveal()}\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
