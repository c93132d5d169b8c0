"""The certificates of a TLS listener, from files, and the operator that a client's certificate stands for (design section 5).

Files are looked at whenever a connection is made, and read anew when one of them changed. What does not fit together, as
while somebody replaces one file after the other, changes nothing: what was in force stays, and the log says why. Called by
`start.py` before a server starts, by `api/tls.py` on gRPC's threads, and by `api/server.py` for a call without a credential.
"""

from __future__ import annotations

import functools
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from doorward_server.metrics import TLS_EXPIRY

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.settings import Settings

__all__ = ["OPERATOR_URI", "CertificateInvalid", "Certificates", "CertifiedOperator", "Pair", "operator_in"]

log = structlog.get_logger()

# The scheme of the one URI among a certificate's subject alternative names (decision 0011); the operator's id follows.
OPERATOR_URI: Final = "doorward-operator:"
OPERATOR_ID: Final = re.compile(r"[0-9A-Za-z]{16}")
BEGIN, END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
# A chain has a few kilobytes, a bundle of all public authorities 250; a file named by mistake is not read into memory.
MOST_BYTES: Final = 4 * 1024 * 1024
# Callers are few; what a certificate says is found once for each.
REMEMBERED: Final = 1000


class CertificateInvalid(Exception):
    """The files cannot be used as they are. The text names the option and what would be right."""


class CertifiedOperator(NamedTuple):
    """Whom a client's certificate, which the handshake verified, stands for, and until when (Unix epoch, microseconds)."""

    operator_id: str
    expire_us: int


@dataclass(frozen=True, slots=True)
class Pair:
    """What a listener shows and whom it trusts, as PEM. `client_ca` None: it asks for no certificate."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None


# Of each file: which one it is, and when it was changed.
Stamp = tuple[tuple[int, int, int, int], ...]


class Certificates:
    """The files of one listener.

    Raises:
        CertificateInvalid: on construction, they cannot be used.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        # gRPC makes connections on several threads.
        self._lock = threading.Lock()
        self._told = ""
        try:
            self._seen: Stamp | None = self._stamp()
            self.first = self._read()
        except OSError as error:
            raise CertificateInvalid(f"{error.filename} cannot be read: {error.strerror}") from None

    @classmethod
    def of(cls, settings: Settings) -> Certificates | None:
        """Those that the settings name; None: no TLS. Raises as the constructor does."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    def changed(self) -> Pair | None:
        """What the files hold, if that is new and fits together; else None. From any thread."""
        with self._lock:
            try:
                stamp = self._stamp()
                if stamp == self._seen:
                    return None
                # Before reading: whatever is written from now on is found the next time.
                self._seen = stamp
                pair = self._read()
            except OSError as error:
                # Rights may change, and the stamp not.
                self._seen = None
                self._tell(f"{error.filename} cannot be read: {error.strerror}")
                return None
            except CertificateInvalid as invalid:
                self._tell(str(invalid))
                return None
            self._told = ""
            return pair

    def _tell(self, why: str) -> None:
        """Logs why what was in force stays, once, however many connections are made meanwhile."""
        if why != self._told:
            self._told = why
            log.error("tls_files_kept", why=why)

    def _files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self._cert, self._key, self._client_ca) if path is not None)

    def _stamp(self) -> Stamp:
        states = [path.stat() for path in self._files()]
        return tuple((state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for state in states)

    def _read(self) -> Pair:
        chain, key = _content(self._cert), _content(self._key)
        leaf = _certificates(chain, "--tls-cert", self._cert)[0]
        _require_own_key(leaf, key, self._cert, self._key)
        client_ca = None
        if self._client_ca is not None:
            client_ca = _content(self._client_ca)
            authorities = _certificates(client_ca, "--tls-client-ca", self._client_ca)
            last = max(authority.not_valid_after_utc for authority in authorities)
            TLS_EXPIRY.labels("client_ca").set(last.timestamp())
        TLS_EXPIRY.labels("cert").set(leaf.not_valid_after_utc.timestamp())
        log.info("tls_certificate_read", fingerprint=_fingerprint(leaf), not_after=leaf.not_valid_after_utc.isoformat())
        return Pair(chain, key, client_ca)


@functools.lru_cache(REMEMBERED)
def operator_in(certificate: bytes) -> CertifiedOperator | None:
    """Whom a client's verified certificate (PEM) stands for; None: for nobody, or nobody can tell."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, UnsupportedAlgorithm):
        return None
    ids = {uri.removeprefix(OPERATOR_URI) for uri in uris if uri.startswith(OPERATOR_URI)}
    # Of two, which one calls would be a guess.
    if len(ids) != 1:
        return None
    (operator_id,) = ids
    if OPERATOR_ID.fullmatch(operator_id) is None:
        return None
    return CertifiedOperator(operator_id, int(found.not_valid_after_utc.timestamp()) * 1_000_000)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise CertificateInvalid(f"{path} has more than {MOST_BYTES} bytes; expected PEM")
    return content


def _certificates(content: bytes, option: str, path: Path) -> list[x509.Certificate]:
    # One that is cut off within is no error to every parser of PEM.
    if content.count(BEGIN) != content.count(END):
        raise CertificateInvalid(f"{option}: {path} is cut off within a certificate")
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise CertificateInvalid(
            f"{option}: {path} holds no certificate in PEM (BEGIN CERTIFICATE), or a broken one"
        ) from None


def _require_own_key(leaf: x509.Certificate, content: bytes, cert: Path, path: Path) -> None:
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise CertificateInvalid(f"--tls-key: {path} is encrypted; give the key without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateInvalid(f"--tls-key: {path} holds no private key in PEM, or a broken one") from None
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey):
        raise CertificateInvalid(f"--tls-key: {path} is a kind of key that gRPC does not take; use ECDSA or RSA")
    if key.public_key() != leaf.public_key():
        raise CertificateInvalid(f"--tls-key: {path} is not the key of the certificate in {cert}")


def _fingerprint(certificate: x509.Certificate) -> str:
    """As `openssl x509 -fingerprint -sha256` has it, without the colons."""
    return certificate.fingerprint(hashes.SHA256()).hex()
