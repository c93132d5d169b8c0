"""Seals the answer of a call for its repeat (design section 4, `request_id`): AES-256-GCM under a key made for this one.

The key is HKDF(pepper key, request id, caller, request hash), and the request id is stored nowhere. So it takes the pepper
file *and* the request id to open what lies in the database, and what was sealed for one caller and one request opens for
no other. A sealed value names its pepper key, so that it opens while that key is in the file, whichever is current; it has
a random nonce, and everything in it is authenticated.

    1 byte form ‖ 1 byte length ‖ pepper id ‖ 12 bytes nonce ‖ ciphertext ‖ 16 bytes tag

A request id that can be guessed opens too for whoever has the rest: the contract asks for a random UUID.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from doorward_server.credentials.pepper import PepperRing

__all__ = ["Binding", "CannotOpen", "open_sealed", "seal"]

_FORM: Final = b"\x01"
_NONCE_BYTES: Final = 12
_LABEL: Final = b"doorward sealed response"


class CannotOpen(Exception):
    """The sealed bytes were changed or cut, or the pepper key that they name is not in the file. Says nothing of them."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a sealed value is bound to. `request_id` is what keeps it shut: never stored, logged or shown."""

    request_id: bytes = field(repr=False)
    caller: str
    request_hash: bytes

    def info(self) -> bytes:
        """All of it as one value, each part behind its length, so that no two bindings have the same."""
        parts = (_LABEL, self.request_id, self.caller.encode(), self.request_hash)
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def seal(ring: PepperRing, binding: Binding, plain: bytes) -> bytes:
    """`plain`, sealed under the current pepper key; twice the same is never the same."""
    header = _header(ring.current_id)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return header + nonce + _cipher(ring, ring.current_id, binding).encrypt(nonce, plain, header)


def open_sealed(ring: PepperRing, binding: Binding, sealed: bytes) -> bytes:
    """What was sealed under the same binding.

    Raises:
        CannotOpen: it is not what was sealed, the binding is another one, or the pepper key is missing.
    """
    pepper_id = _pepper_id(sealed)
    header = _header(pepper_id)
    nonce, rest = sealed[len(header) : len(header) + _NONCE_BYTES], sealed[len(header) + _NONCE_BYTES :]
    try:
        return _cipher(ring, pepper_id, binding).decrypt(nonce, rest, header)
    except (InvalidTag, ValueError):
        raise CannotOpen("a sealed response is not what was sealed, or was sealed for something else") from None


def _header(pepper_id: str) -> bytes:
    encoded = pepper_id.encode("ascii")
    return _FORM + len(encoded).to_bytes(1, "big") + encoded


def _pepper_id(sealed: bytes) -> str:
    length = sealed[1] if len(sealed) > 1 else 0
    encoded = sealed[2 : 2 + length]
    if sealed[:1] != _FORM or not length or len(encoded) != length or not encoded.isascii():
        raise CannotOpen("a sealed response is cut off, or of a form that this version does not know")
    return encoded.decode("ascii")


def _cipher(ring: PepperRing, pepper_id: str, binding: Binding) -> AESGCM:
    key = ring.derive(pepper_id, binding.info())
    if key is None:
        raise CannotOpen("the pepper file lacks the key that a response was sealed under")
    return AESGCM(key)
