"""What a database URL says, spelled out in full (design section 6, External).

asyncpg fills whatever it is not told from PG* variables, ~/.pgpass and ~/.postgresql. Here everything is told, so that
the URL alone decides where Doorward connects, as whom, and how the line is protected. Called by `pool.Database`.
"""

from __future__ import annotations

import getpass
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from doorward_server.storage.failures import DatabaseUnusable

__all__ = ["DatabaseUrl", "parse"]

DEFAULT_PORT = 5432
SOCKET_DIRECTORIES = ("/run/postgresql", "/var/run/postgresql", "/tmp")  # noqa: S108 - where PostgreSQL puts its socket
PARAMETERS = frozenset(
    {
        "host",
        "port",
        "user",
        "password",
        "dbname",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "target_session_attrs",
    }
)
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Where to connect and as whom. `tls`: the ways to try at a TCP host, in order; None is a plain connection."""

    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str = field(repr=False)
    database: str
    tls: tuple[ssl.SSLContext | None, ...] = field(repr=False)

    @property
    def places(self) -> str:
        """The hosts for people: `db1:5432, db2:5432`. Nothing of the user or the password."""
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)


def parse(url: str) -> DatabaseUrl:
    """Reads `postgresql://user:password@host:port,host:port/database?parameter=value`, as libpq would.

    Raises: DatabaseUnusable, with a text that says what would be right and never holds the URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise DatabaseUnusable(
            "The database URL is malformed: postgresql://user@host:port/database is its form."
        ) from None
    if parts.scheme not in {"postgresql", "postgres"}:
        raise DatabaseUnusable("The database URL must begin with postgresql://.")
    given = _parameters(parts.query)
    credentials, _, places = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    user = given.get("user") or unquote(user) or getpass.getuser()
    return DatabaseUrl(
        hosts=_hosts(given.get("host") or places, given.get("port", "")),
        user=user,
        password=given.get("password") or unquote(password),
        database=given.get("dbname") or unquote(parts.path.removeprefix("/")) or user,
        tls=_tls(given),
    )


def _parameters(query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name not in PARAMETERS:
            known = ", ".join(sorted(PARAMETERS))
            raise DatabaseUnusable(f"The database URL has the unknown parameter {name!r}; known are {known}.")
        given[name] = unquote(value)
    if given.get("target_session_attrs", "read-write") not in {"any", "primary", "read-write"}:
        raise DatabaseUnusable(
            "Doorward writes: target_session_attrs in the database URL must be read-write, primary or any."
        )
    return given


def _hosts(places: str, ports: str) -> tuple[tuple[str, int], ...]:
    default_ports = ports.split(",") if ports else [""]
    hosts = []
    for index, place in enumerate(places.split(",")):
        host, port = _split_port(place)
        port = port or default_ports[min(index, len(default_ports) - 1)] or str(DEFAULT_PORT)
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise DatabaseUnusable("The database URL names a port that is no number from 1 to 65535.")
        hosts.append((unquote(host) or _local(int(port)), int(port)))
    return tuple(hosts)


def _split_port(place: str) -> tuple[str, str]:
    if place.startswith("["):
        host, _, rest = place[1:].partition("]")
        return host, rest.removeprefix(":")
    if place.startswith("/"):
        return place, ""
    host, _, port = place.partition(":")
    return host, port


def _local(port: int) -> str:
    """Where a URL without a host leads, as with libpq: to this machine's socket, else to localhost."""
    for directory in SOCKET_DIRECTORIES:
        if Path(directory, f".s.PGSQL.{port}").exists():
            return directory
    return "localhost"


def _tls(given: dict[str, str]) -> tuple[ssl.SSLContext | None, ...]:
    mode = given.get("sslmode", "prefer")
    if mode not in SSL_MODES:
        raise DatabaseUnusable(f"sslmode in the database URL must be one of {', '.join(SSL_MODES)}.")
    if mode == "disable":
        return (None,)
    context = _context(mode, given.get("sslrootcert"), given.get("sslcert"), given.get("sslkey"))
    return {"allow": (None, context), "prefer": (context, None)}.get(mode, (context,))


def _context(mode: str, roots: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = mode == "verify-full"
    if mode in {"allow", "prefer"} or (mode == "require" and roots is None):
        context.verify_mode = ssl.CERT_NONE
    elif roots is None:
        raise DatabaseUnusable(f"sslmode={mode} in the database URL needs sslrootcert=FILE, or sslrootcert=system.")
    try:
        if roots == "system":
            context.load_default_certs()
        elif roots is not None:
            context.load_verify_locations(cafile=roots)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise DatabaseUnusable(
            f"A certificate file that the database URL names cannot be used ({type(error).__name__})."
        ) from None
    return context
