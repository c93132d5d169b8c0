"""The credential that a client calls with: a value, a file that may be replaced at any time, or a callable.

A source hands out gRPC metadata, and the same object while the credential is the same. Its text is in no repr and in no
message. Design sections 5 and 8; both dialects take theirs from here, before every call.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import grpc

from doorward.clock import Clock, SystemClock
from doorward.core.secret import SecretKind, find_secret
from doorward.errors import CredentialUnreadable, Status

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CredentialSource", "Metadata", "credential_of"]

log: Final = logging.getLogger("doorward")

Metadata: TypeAlias = "tuple[tuple[str, str], ...]"

# How often a file is looked at: a look is one stat, and a rotation overlaps by more.
LOOK_EVERY_NS: Final = 1_000_000_000
# A credential has 60 characters; a file that was named by mistake is not read into memory.
_MOST_BYTES: Final = 4096


class CredentialSource(Protocol):
    """Where the credential comes from."""

    def metadata(self) -> Metadata:
        """What to send with a call that begins now.

        Raises:
            CredentialUnreadable: there is none.
        """
        ...

    def refused(self) -> None:
        """A server did not recognize it: look for another one at the next call."""
        ...


def credential_of(given: str | os.PathLike[str] | Callable[[], str] | None) -> CredentialSource:
    """The source that the argument `credential` of a client means.

    Raises:
        ValueError: a text that can be no credential.
    """
    if given is None:
        return Fixed(())
    if isinstance(given, str):
        return Fixed(_found(given.strip()))
    if isinstance(given, os.PathLike):
        return FromFile(Path(given), SystemClock())
    return FromCallable(given)


class Fixed:
    """The same for the life of the client, or none."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def metadata(self) -> Metadata:
        """What to send."""
        return self._metadata

    def refused(self) -> None:
        """Nothing else is known."""


class FromFile:
    """What a file holds, read again once it is another one.

    Looked at once a second at most, and read at the next call after the credential was refused. While it cannot be read,
    or holds no whole credential because someone is just writing it, the one before stays in use.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._look_at_ns = 0
        self._seen: tuple[int, ...] = ()
        self._problem = ""
        self._metadata: Metadata = ()

    def metadata(self) -> Metadata:
        """What to send.

        Raises:
            CredentialUnreadable: the file has never held one.
        """
        now_ns = self._clock.now_ns()
        if now_ns >= self._look_at_ns or not self._metadata:
            self._look(now_ns)
        return self._metadata

    def refused(self) -> None:
        """Reads at the next call, even a file that looks the same: its times are coarser than a writer is quick."""
        self._look_at_ns, self._seen = 0, ()

    def _look(self, now_ns: int) -> None:
        self._look_at_ns = now_ns + LOOK_EVERY_NS
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())  # of the open file, not of the name: what is compared is what is read
                seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                if seen == self._seen:
                    return
                text = file.read(_MOST_BYTES).decode(errors="replace").strip()
        except OSError as error:
            self._keep(f"cannot be read: {error.strerror}")
            return
        try:
            metadata = _found(text)
        except ValueError:
            self._keep("holds no whole credential")
            return
        self._seen, self._problem = seen, ""
        if metadata != self._metadata:
            self._metadata = metadata

    def _keep(self, problem: str) -> None:
        if not self._metadata:
            raise _unreadable(f"the credential's file {self._path} {problem}")
        if problem != self._problem:
            log.warning("credential file %s %s; the credential that it held before stays in use", self._path, problem)
        self._problem = problem


class FromCallable:
    """What a callable returns, asked before every call: it must be quick, and a value that something else keeps fresh."""

    def __init__(self, source: Callable[[], str]) -> None:
        self._source = source
        self._held: tuple[str, Metadata] | None = None  # in one piece, for threads

    def metadata(self) -> Metadata:
        """What to send.

        Raises:
            CredentialUnreadable: the callable raised, or returned something else.
        """
        try:
            text, held = self._source(), self._held
            if held is None or held[0] != text:
                self._held = held = (text, _found(text.strip()))
        except Exception as error:
            raise _unreadable("the callable given as credential failed, or returned none") from error
        return held[1]

    def refused(self) -> None:
        """The callable knows better."""


def _found(text: str) -> Metadata:
    # Whole and well-formed: half of one is no credential, and a value that gRPC refuses would stand in its message.
    if all(find_secret(text, kind) is None for kind in SecretKind):
        raise ValueError(
            "credential: a str is the credential itself, the 60 characters of dwop_… or dwst_…; name a file with "
            "pathlib.Path. What was given is not shown"
        )
    return (("authorization", f"Bearer {text}"),)


def _unreadable(message: str) -> CredentialUnreadable:
    return CredentialUnreadable(Status(grpc.StatusCode.UNAUTHENTICATED, message))
