"""TLS and mTLS: who is trusted, what is refused, and several servers under one name. Both dialects, real handshakes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from doorward import errors
from tests.support.authority import Authority, Certificate
from tests.support.held import Held

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.dialects import Dialect

NAME = "doorward.test"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@contextlib.contextmanager
def serving(certificate: Certificate, clients: bytes | None = None) -> Iterator[Held]:
    """A server with this certificate; `clients`: it takes only who has a certificate of this authority."""
    pair = (certificate.key, certificate.certificate)
    credentials = grpc.ssl_server_credentials([pair], clients, require_client_auth=clients is not None)
    with contextlib.closing(Held(credentials=credentials)) as held:
        yield held


def asks(dialect: Dialect, target: Any, **how: Any) -> bool:
    return bool(dialect.client("Authorizer", target, timeout=20.0, **how).check("s", "yes:read", project_id="p"))


def test_a_server_of_the_trusted_authority_is_called(dialect: Dialect, authority: Authority, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(authority.pem)
    with serving(authority.issue("127.0.0.1")) as held:
        for trusted in (authority.pem, file, str(file)):
            assert asks(dialect, held.address, tls_ca=trusted)


def test_a_server_of_another_authority_is_not(dialect: Dialect, authority: Authority) -> None:
    with serving(authority.issue("127.0.0.1")) as held:
        with pytest.raises(errors.Unavailable):
            asks(dialect, held.address, tls_ca=Authority("others").pem)
        with pytest.raises(errors.Unavailable):
            asks(dialect, held.address, tls=True)  # those that everybody trusts
        assert held.so_far() == []


def test_a_server_under_another_name_is_not(dialect: Dialect, authority: Authority) -> None:
    with serving(authority.issue(NAME)) as held:
        with pytest.raises(errors.Unavailable):
            asks(dialect, held.address, tls_ca=authority.pem)
        assert asks(dialect, held.address, tls_ca=authority.pem, tls_server_name=NAME)


def test_several_servers_have_one_name(dialect: Dialect, authority: Authority) -> None:
    with serving(authority.issue(NAME)) as one, serving(authority.issue(NAME)) as other:
        targets = [one.address, other.address]
        assert asks(dialect, targets, tls_ca=authority.pem, tls_server_name=NAME)
        with pytest.raises(errors.Unavailable):
            asks(dialect, targets, tls_ca=authority.pem, tls_server_name="another.test")


def test_a_server_that_wants_a_certificate_gets_it(dialect: Dialect, authority: Authority, tmp_path: Path) -> None:
    mine = authority.issue("api")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    key.write_bytes(mine.key)
    certificate.write_bytes(mine.certificate)
    with serving(authority.issue("127.0.0.1"), clients=authority.pem) as held:
        assert asks(dialect, held.address, tls_ca=authority.pem, tls_cert=mine.certificate, tls_key=mine.key)
        assert asks(dialect, held.address, tls_ca=authority.pem, tls_cert=certificate, tls_key=key)


def test_without_one_or_with_a_strangers_it_is_unavailable(dialect: Dialect, authority: Authority) -> None:
    stranger = Authority("others").issue("api")
    with serving(authority.issue("127.0.0.1"), clients=authority.pem) as held:
        with pytest.raises(errors.Unavailable):
            asks(dialect, held.address, tls_ca=authority.pem)
        with pytest.raises(errors.Unavailable):
            asks(dialect, held.address, tls_ca=authority.pem, tls_cert=stranger.certificate, tls_key=stranger.key)
        assert held.so_far() == []


def test_a_server_without_tls_is_not_called_with_it(dialect: Dialect, authority: Authority, held: Held) -> None:
    with pytest.raises(errors.Unavailable):
        asks(dialect, held.address, tls_ca=authority.pem)


def test_a_file_that_is_not_there_is_told_when_the_client_is_made(dialect: Dialect, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        dialect.client("Authorizer", "127.0.0.1:1", tls_ca=tmp_path / "none.pem")
