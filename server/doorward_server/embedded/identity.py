"""As whom PostgreSQL runs, which is a question because it refuses to run as root.

An ordinary user runs it as themselves. Root (and a user without a passwd entry, whom initdb refuses) runs it in a user
namespace, where root outside is some listed user inside: files stay the owner's, and `peer`, whose credentials the
kernel translates into the namespace of whoever asks, sees us under that user's name and everybody else as the overflow
uid 65534, which therefore is never the one we map. Only where namespaces are refused does root become `postgres` or
`nobody`. Promises that no user is created and that an unreachable path is named. Called by `postgres.py`.
Design section 6.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from doorward_server.embedded import launcher
from doorward_server.embedded.binaries import OLDEST_MAJOR, VARIABLE, Binaries, parse_version
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.programs import run_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

OVERFLOW_ID: Final = 65534
# Whose name a namespace borrows, best first; they are only a name there. Any other listed user will do.
_BORROWED: Final = ("postgres", "daemon", "bin")
_SUBSTITUTES: Final = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a PostgreSQL program is (`uid`, `gid` as it sees itself) and under which name `peer` sees us there."""

    mode: Literal["self", "namespace", "user"]
    uid: int
    gid: int
    peer_name: str

    def command(
        self, program: Path, *arguments: str, reach: Path | None = None, death_signal: int = signal.SIGKILL
    ) -> list[str]:
        """The command line that runs `program` as this identity, ending with us; `reach` must be reachable for it."""
        return [
            sys.executable, "-I", "-S", launcher.__file__,
            self.mode, str(self.uid), str(self.gid), str(os.getpid()), str(int(death_signal)), str(reach or ""),
            str(program), *arguments,
        ]  # fmt: skip


async def choose_identity(binaries: Binaries, directory: Path, home: Path | None = None) -> tuple[Identity, int]:
    """The identity that may run `binaries` and reach `directory`, and their major version.

    With mode "user" the directory was not asked for: it is root's own, and the cluster belongs elsewhere. A cluster
    that is elsewhere already, in `home`, keeps the user that owns it.

    Raises: EmbeddedUnavailable, naming the path that is out of reach or what the program said.
    """
    own = _own_name()
    if home is not None:
        identity = _owner_of(home, own)
        try:
            return identity, await _probe(identity, binaries, home)
        except _RefusedError as error:
            raise _nobody_to_be(str(error)) from error
    if os.geteuid() != 0 and own is not None:
        identity = Identity("self", os.geteuid(), os.getegid(), own)
        return identity, await _probe(identity, binaries, directory)
    refusal = "there is no user namespace on this platform"
    borrowed = find_borrowed(_listed_users()) if sys.platform == "linux" else None
    if borrowed is not None:
        identity = Identity("namespace", borrowed.pw_uid, borrowed.pw_gid, borrowed.pw_name)
        try:
            return identity, await _probe(identity, binaries, directory)
        except _RefusedError as error:
            refusal = str(error)
    identity = _substitute(own, refusal)
    try:
        return identity, await _probe(identity, binaries, None)
    except _RefusedError as error:
        raise _nobody_to_be(f"{refusal}, {error}") from error


def find_borrowed(users: Iterable[pwd.struct_passwd]) -> pwd.struct_passwd | None:
    """The first whom a namespace may show us as: not root, and never the uid that stands for everybody else."""
    return next((user for user in users if user.pw_uid not in (0, OVERFLOW_ID)), None)


class _RefusedError(Exception):
    """The kernel, a container's filter or a policy does not let us be whom we asked to be."""


def _listed_users() -> Iterator[pwd.struct_passwd]:
    """The usual names, then all; the list can be long where it comes from a directory service."""
    for name in _BORROWED:
        try:
            yield pwd.getpwnam(name)
        except KeyError:
            continue
    yield from pwd.getpwall()


def _own_name() -> str | None:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def _owner_of(home: Path, own: str | None) -> Identity:
    """The user of a cluster that was put outside of DIR; only root can become that user again."""
    owner = (home / "postgres").stat()
    if os.geteuid() != 0 or own is None:
        raise EmbeddedUnavailable(
            f"the cluster in {home} belongs to uid {owner.st_uid}, whom only root can become; run the server as root, "
            "choose another --data-dir, or name another server with --database-url"
        )
    return Identity("user", owner.st_uid, owner.st_gid, own)


def _substitute(own: str | None, refusal: str) -> Identity:
    """Whom root becomes where namespaces are refused. Raises: EmbeddedUnavailable, when there is nobody to become."""
    for name in _SUBSTITUTES if os.geteuid() == 0 and own is not None else ():
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity("user", user.pw_uid, user.pw_gid, own or "")
    raise _nobody_to_be(refusal)


def _nobody_to_be(refusal: str) -> EmbeddedUnavailable:
    return EmbeddedUnavailable(
        f"PostgreSQL can't run as uid {os.geteuid()}, and neither a user namespace nor a user "
        f"{' or '.join(_SUBSTITUTES)} could be had instead ({refusal}); run the server as an ordinary user with a "
        "passwd entry, or name another server with --database-url"
    )


async def _probe(identity: Identity, binaries: Binaries, directory: Path | None) -> int:
    """Runs `postgres --version` as that identity: proves that it may be had, and that it reaches what it needs."""
    command = identity.command(binaries.postgres, "--version", reach=directory and directory / "postgres")
    status, output = await run_program(command)
    if status in (launcher.NAMESPACE_REFUSED, launcher.BECOMING_REFUSED):
        raise _RefusedError(output)
    whom = {"self": "this user", "namespace": "root in its user namespace"}.get(identity.mode, f"uid {identity.uid}")
    if status == launcher.UNREACHABLE:
        raise EmbeddedUnavailable(
            f"{output} by {whom}, as whom PostgreSQL runs; move the data directory (--data-dir) or the programs "
            f"({VARIABLE}) to where they can be reached, or name another server with --database-url"
        )
    major = parse_version(output)
    if status != 0 or major is None:
        raise EmbeddedUnavailable(
            f"{binaries.postgres} does not run: {output or f'it ended with status {status}'}; point {VARIABLE} at "
            "another PostgreSQL, or name a server with --database-url"
        )
    if major < OLDEST_MAJOR:
        raise EmbeddedUnavailable(
            f"{binaries.postgres} is PostgreSQL {major}, and at least {OLDEST_MAJOR} is needed; point {VARIABLE} at a "
            "newer one, or name a server with --database-url"
        )
    return major
