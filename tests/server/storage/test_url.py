"""A database URL says everything, is read as libpq reads it, and stays out of error texts."""

from __future__ import annotations

import getpass
import ssl
from typing import TYPE_CHECKING

import pytest

from doorward_server.storage.failures import DatabaseUnusable
from doorward_server.storage.url import parse

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://db1/x", (("db1", 5432),)),
        ("postgres://db1:6000/x", (("db1", 6000),)),
        ("postgresql://db1:6000,db2:6001,db3/x", (("db1", 6000), ("db2", 6001), ("db3", 5432))),
        ("postgresql://db1,db2/x?port=6000", (("db1", 6000), ("db2", 6000))),
        ("postgresql:///x?host=db1,db2&port=6000,6001", (("db1", 6000), ("db2", 6001))),
        ("postgresql://[::1]:6000,[fe80::2]/x", (("::1", 6000), ("fe80::2", 5432))),
        ("postgresql:///x?host=%2Fsock%2Fa%20b%2Bc&port=7", (("/sock/a b+c", 7),)),
        ("postgresql:///x?host=/sock/a+b", (("/sock/a+b", 5432),)),
        ("postgresql://%2Fsock%2Fa/x", (("/sock/a", 5432),)),
        ("postgresql://ignored/x?host=db9", (("db9", 5432),)),
    ],
)
def test_hosts_and_ports(url: str, hosts: tuple[tuple[str, int], ...]) -> None:
    assert parse(url).hosts == hosts


def test_who_connects_to_what() -> None:
    url = parse("postgresql://al%69ce:p%40ss%3A%2Fword@db1/door%20ward?sslmode=disable")
    assert (url.user, url.password, url.database) == ("alice", "p@ss:/word", "door ward")
    by_parameters = parse("postgresql://a:b@db1/c?user=u&password=p&dbname=d")
    assert (by_parameters.user, by_parameters.password, by_parameters.database) == ("u", "p", "d")


def test_the_environment_fills_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE"):
        monkeypatch.setenv(name, "9999")
    url = parse("postgresql://db1")
    assert (url.hosts, url.user, url.password, url.database) == (
        (("db1", 5432),),
        getpass.getuser(),
        "",
        getpass.getuser(),
    )


@pytest.mark.parametrize(
    ("mode", "verify", "checks_host", "plain"),
    [
        ("allow", ssl.CERT_NONE, False, True),
        ("prefer", ssl.CERT_NONE, False, True),
        ("require", ssl.CERT_NONE, False, False),
        ("require&sslrootcert=system", ssl.CERT_REQUIRED, False, False),
        ("verify-ca&sslrootcert=system", ssl.CERT_REQUIRED, False, False),
        ("verify-full&sslrootcert=system", ssl.CERT_REQUIRED, True, False),
    ],
)
def test_how_the_line_is_protected(mode: str, verify: ssl.VerifyMode, checks_host: bool, plain: bool) -> None:
    ways = parse(f"postgresql://db1/x?sslmode={mode}").tls
    (context,) = (way for way in ways if way is not None)
    assert (context.verify_mode, context.check_hostname) == (verify, checks_host)
    assert (None in ways) == plain


def test_plain_only_when_disabled_and_last_when_tls_is_preferred() -> None:
    assert parse("postgresql://db1/x?sslmode=disable").tls == (None,)
    assert parse("postgresql://db1/x").tls[-1] is None
    assert parse("postgresql://db1/x?sslmode=allow").tls[0] is None


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://me:hunter2@db1/x", "postgresql://"),
        ("db1:5432", "postgresql://"),
        ("postgresql://me:hunter2@[::1/x", "malformed"),
        ("postgresql://me:hunter2@db1:0/x", "port"),
        ("postgresql://me:hunter2@db1:65536/x", "port"),
        ("postgresql://me:hunter2@db1:port/x", "port"),
        ("postgresql://me:hunter2@db1/x?sslmode=maybe", "verify-full"),
        ("postgresql://me:hunter2@db1/x?sslmode=verify-full", "sslrootcert"),
        ("postgresql://me:hunter2@db1/x?sslmode=verify-full&sslrootcert=/nowhere", "FileNotFoundError"),
        ("postgresql://me:hunter2@db1/x?sslcert=/nowhere", "FileNotFoundError"),
        ("postgresql://me:hunter2@db1/x?options=-cfsync=off", "options"),
        ("postgresql://me:hunter2@db1/x?target_session_attrs=standby", "read-write"),
    ],
)
def test_what_is_refused_says_what_would_be_right(url: str, says: str) -> None:
    with pytest.raises(DatabaseUnusable, match=says) as refused:
        parse(url)
    assert "hunter2" not in str(refused.value)


def test_a_certificate_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text("no certificate")
    with pytest.raises(DatabaseUnusable, match="certificate"):
        parse(f"postgresql://db1/x?sslmode=verify-ca&sslrootcert={tmp_path}/root.pem")


def test_the_password_is_not_shown() -> None:
    url = parse("postgresql://me:hunter2@db1,db2:6000/x")
    assert "hunter2" not in repr(url)
    assert url.places == "db1:5432, db2:6000"
