"""The certificates of a listener: what is refused, what is read anew, and what stays while files are replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from doorward.core.secret import new_id
from doorward_server.credentials.certificates import CertificateInvalid, Certificates, operator_in
from tests.support.authority import Authority, Certificate

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def first(authority: Authority) -> Certificate:
    return authority.issue("doorward.test")


@pytest.fixture
def certificates(tmp_path: Path, first: Certificate, authority: Authority) -> Certificates:
    put(tmp_path, first)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    return Certificates(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")


def put(directory: Path, pair: Certificate) -> None:
    """Replaces both files as a careful program does: each by a rename."""
    for name, content in (("cert.pem", pair.certificate), ("key.pem", pair.key)):
        replace(directory / name, content)


def replace(path: Path, content: bytes) -> None:
    draft = path.with_suffix(".new")
    draft.write_bytes(content)
    draft.replace(path)


def test_what_has_not_changed_is_not_read_again(certificates: Certificates, first: Certificate) -> None:
    assert certificates.first.certificate == first.certificate
    assert certificates.changed() is None


def test_a_new_pair_is_read_once(certificates: Certificates, authority: Authority, tmp_path: Path) -> None:
    second = authority.issue("doorward.test")
    put(tmp_path, second)

    pair = certificates.changed()

    assert pair is not None
    assert (pair.certificate, pair.key, pair.client_ca) == (second.certificate, second.key, authority.pem)
    assert certificates.changed() is None


def test_half_of_a_pair_changes_nothing_until_the_other_half_is_there(
    certificates: Certificates, authority: Authority, tmp_path: Path
) -> None:
    second = authority.issue("doorward.test")

    replace(tmp_path / "cert.pem", second.certificate)
    assert certificates.changed() is None
    replace(tmp_path / "key.pem", second.key)

    pair = certificates.changed()
    assert pair is not None
    assert pair.certificate == second.certificate


@pytest.mark.parametrize("name", ["cert.pem", "key.pem", "ca.pem"])
def test_a_file_that_is_cut_off_empty_or_gone_changes_nothing(
    certificates: Certificates, tmp_path: Path, name: str
) -> None:
    whole = (tmp_path / name).read_bytes()

    for part in (whole[: len(whole) // 2], whole + whole[: len(whole) // 2], b"", b"\xff\x00"):
        if name == "key.pem" and part.startswith(whole):
            continue  # behind the key anything may stand
        replace(tmp_path / name, part)
        assert certificates.changed() is None
    (tmp_path / name).unlink()
    assert certificates.changed() is None
    replace(tmp_path / name, whole)
    assert certificates.changed() is not None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cert.pem", r"--tls-cert: .*cert\.pem holds no certificate"),
        ("key.pem", r"--tls-key: .*key\.pem holds no private key"),
        ("ca.pem", r"--tls-client-ca: .*ca\.pem holds no certificate"),
    ],
)
def test_files_that_cannot_be_used_are_named(certificates: Certificates, tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(CertificateInvalid, match=told):
        Certificates(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    (tmp_path / name).unlink()
    with pytest.raises(CertificateInvalid, match=f"{name} cannot be read: No such file"):
        Certificates(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")


def test_another_certificates_key_is_refused(certificates: Certificates, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(authority.issue("doorward.test").key)
    with pytest.raises(CertificateInvalid, match="is not the key of the certificate"):
        Certificates(tmp_path / "cert.pem", tmp_path / "key.pem", None)


def test_a_key_that_grpc_cannot_use_is_refused_at_once(
    certificates: Certificates, first: Certificate, tmp_path: Path
) -> None:
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    strange = ed25519.Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, serialization.NoEncryption())
    locked = serialization.load_pem_private_key(first.key, None).private_bytes(
        pem, pkcs8, serialization.BestAvailableEncryption(b"passphrase")
    )
    for content, told in ((strange, "ECDSA or RSA"), (locked, "without a passphrase")):
        (tmp_path / "key.pem").write_bytes(content)
        with pytest.raises(CertificateInvalid, match=told):
            Certificates(tmp_path / "cert.pem", tmp_path / "key.pem", None)


def test_a_certificate_stands_for_the_operator_that_its_uri_names(authority: Authority) -> None:
    operator_id = new_id()
    certified = operator_in(authority.issue("api.test", f"doorward-operator:{operator_id}").certificate)
    assert certified is not None
    assert certified.operator_id == operator_id
    assert certified.expire_us % 1_000_000 == 0


def test_any_other_certificate_stands_for_nobody(authority: Authority) -> None:
    one, other = f"doorward-operator:{new_id()}", f"doorward-operator:{new_id()}"
    for names in (
        ["api.test"],
        [new_id()],
        [f"urn:{one}"],
        [one.upper()],
        [f"{one}/"],
        [f"{one}x"],
        ["doorward-operator:"],
        [one, other],
    ):
        assert operator_in(authority.issue(*names).certificate) is None
    assert operator_in(b"no certificate") is None
