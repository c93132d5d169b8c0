"""A process that decides by itself, from tokens fetched once, under the same promise as a replica: without its I/O.

Messages and clock readings go in, messages and decisions come out; the shells of both dialects carry them. `Watcher`
owns the session, `watch_check.Check` is a check that may have to wait. The rules are those of the checked model (`watch2.cpp`):
a check captures the session and the end of its sub-lease before it looks anything up, and looks at both again just
before it answers, and after everything that it waited for; a session that ends takes everything along.

`*_ns` are readings of one clock, which counts suspended time and runs within 10 % of true speed. One thread at a time
may call what writes: everything but `capture`, `decide` and `still_good` (design sections 7 and 8, "Watchers").
"""

from enum import Enum
from typing import Final, NamedTuple

from doorward.core.catalog import Catalog, Level, Permission
from doorward.core.entries import (
    ACCOUNT_PLAN,
    SECRET_NOT_AFTER_US,
    TOKEN_ACCOUNT_ID,
    TOKEN_COMPILED,
    TOKEN_EXPIRE_US,
    TOKEN_SECRETS,
    find_live_secret,
)
from doorward.core.lease import DatabaseTime
from doorward.core.matrix import DenyReason, decide, is_current
from doorward.core.proofs import LONGEST_TEXT
from doorward.core.secret import SecretKind, find_secret
from doorward.core.watch_messages import Ask, FromReplica, Goodbye, Hello, Reset
from doorward.core.watch_session import Session, Taken
from doorward.core.watch_tables import WatchBounds, WatchTables

_ACCOUNT_LEVEL: Final = Level.ACCOUNT  # looked up on its enum it costs as much as the rest of the line


class Decided(NamedTuple):
    """A decision from memory. `position`: of the state that it contains at least, a revision's text.

    `lasts`: no time ends it, so that until the session's next message the same check is decided alike (`Session.answers`).
    """

    reason: DenyReason
    token_id: str
    account_id: str
    position: str
    lasts: bool


class Need(Enum):
    """What is missing to a decision."""

    TOKEN = "token"  # noqa: S105 a kind of need, not a secret
    PROJECT = "project"
    COMPILED = "compiled"
    LOOK_AGAIN = "look_again"  # read the clock and go on; `decide`: a message is just being applied, decide anew
    SERVER = "server"  # nothing here can decide it: ask the server, and deny if that cannot either


class Captured(NamedTuple):
    """What a check noted when it began."""

    session: Session
    end_ns: int


class SessionEnded(Exception):
    """The session whose message this is has been given up; stop reading its stream."""


class Watcher:
    """At most one session at a time. `bounds` are the most entries that it keeps, whatever a replica allows."""

    __slots__ = ("_bounds", "_time", "session")

    def __init__(self, bounds: WatchBounds | None = None) -> None:
        self._bounds = bounds if bounds is not None else WatchBounds()
        # The one thing that outlives a session: what has expired once stays expired.
        self._time = DatabaseTime()
        self.session: Session | None = None

    # ---- the session

    def open(self, agent: str) -> tuple[Session, Hello]:
        """Begins a session for a stream that is about to be opened; what was there before is given up first."""
        self.give_up()
        self.session = Session(self._bounds, self._time)
        return self.session, Hello(agent)

    def ask(self, session: Session, t0_ns: int) -> Ask | None:
        """Asks for a sub-lease, t0_ns having been read before. None unless the session has started and goes on."""
        return session.ask(t0_ns) if self.session is session and session.started is not None else None

    def take(self, session: Session, message: FromReplica, now_ns: int) -> Taken:
        """Applies the session's next message; what it returns is to be sent only now.

        Raises:
            SessionEnded: the session has been given up; the message means nothing any more.
            WatchViolation: the contract excludes this message; the session has been given up.
        """
        if self.session is not session:
            raise SessionEnded
        if isinstance(message.body, Reset):
            goodbye = self.give_up()
            return Taken(send=() if goodbye is None else (goodbye,), ended=True)
        try:
            return session.take(message, now_ns)
        except BaseException:
            self.give_up()  # half applied, perhaps
            raise

    def give_up(self) -> Goodbye | None:
        """Ends the session: its sub-lease, any grant on the way, its caches and its waiting checks.

        Returns what may be sent as the last message, if the stream is still open; None if there is nothing to end. Call
        it whenever the stream ends, and in a child after fork(), where nothing may be sent.
        """
        session, self.session = self.session, None
        if session is None:
            return None
        session.give_up()
        return None if session.started is None else Goodbye(session.started.session_id)

    # ---- a check: these three only read

    def capture(self, now_ns: int) -> Captured | None:
        """What a check that begins now notes first; None: without a usable sub-lease nothing is decided here."""
        session = self.session
        if session is None:
            return None
        end_ns = session.end_ns
        return Captured(session, end_ns) if end_ns is not None and now_ns < end_ns else None

    def still_good(self, captured: Captured, now_ns: int) -> bool:
        """Whether the check may answer from memory: its session goes on, and the end it captured has not come."""
        return self.session is captured.session and now_ns < captured.end_ns

    def decide(
        self,
        captured: Captured,
        presented: bytes,
        permission_name: str,
        account_id: str | None,
        project_id: str | None,
        now_ns: int,
        proof: bytes | None = None,
    ) -> Decided | Need:
        """What the caches of the captured session say at now_ns, or what is missing; to be followed by `still_good`.

        `proof`: that of the presented text in this session, if it was computed already.
        """
        session = captured.session
        step, position, tables, catalog = session.step, session.position, session.tables, session.catalog
        if step & 1:
            return Need.LOOK_AGAIN
        permission = None if catalog is None else catalog.permissions.get(permission_name)
        if catalog is None or permission is None or not _fits(permission, account_id, project_id):
            return Need.SERVER  # which says what is wrong with it
        if len(presented) > LONGEST_TEXT:
            return Need.SERVER
        if proof is None:
            proof = tables.proofs.proof_of(presented)
        proved = tables.proofs.find(proof)
        if proved is None:
            known_wrong = tables.unrecognized.find(proof) is not None or _is_no_secret(presented)
            found: Decided | Need = _unrecognized(position, lasts=True) if known_wrong else Need.TOKEN
        else:
            found = self._of_token(tables, *proved, catalog, permission, account_id, project_id, position, now_ns)
        # Else parts of it may be of two states.
        return found if session.step == step else Need.LOOK_AGAIN

    def _of_token(
        self,
        tables: WatchTables,
        token_id: str,
        version: int,
        catalog: Catalog,
        permission: Permission,
        account_id: str | None,
        project_id: str | None,
        position: str,
        now_ns: int,
    ) -> Decided | Need:
        """The same of the token that the presented text was proved to be."""
        token = tables.tokens.look_up(token_id)
        account = None if token is None else tables.accounts.look_up(token[TOKEN_ACCOUNT_ID])
        if token is None or account is None:
            return Need.TOKEN
        own_account_id, live = token[TOKEN_ACCOUNT_ID], token[TOKEN_SECRETS]
        tables.tokens.touch(token_id)
        tables.accounts.touch(own_account_id)
        # Of most tokens nothing ever ends, and the time, which costs as much as a look-up or two, tells nothing.
        ends = token[TOKEN_EXPIRE_US] is not None or len(live) != 1 or live[0][SECRET_NOT_AFTER_US] is not None
        now_us = self._time.latest_us(now_ns) if ends else 0
        if find_live_secret(live, version, now_us) is None:
            return _unrecognized(position, lasts=not ends)
        if not is_current(token[TOKEN_COMPILED], catalog, account[ACCOUNT_PLAN]):
            return Need.COMPILED
        owner = None
        if project_id is not None:
            owner = tables.projects.look_up(project_id)
            if owner is not None:
                tables.projects.touch(project_id)
            elif tables.unknown_projects.find(project_id) is None:
                return Need.PROJECT
        reason = decide(token, account, permission, account_id, project_id, owner, now_us)
        return Decided(reason, token_id, own_account_id, position, not ends)


def _fits(permission: Permission, account_id: str | None, project_id: str | None) -> bool:
    """Whether exactly the resource is named that a permission of this level is about."""
    if permission.level is _ACCOUNT_LEVEL:
        return account_id is not None and project_id is None
    return project_id is not None and account_id is None


def _is_no_secret(presented: bytes) -> bool:
    return find_secret(presented, SecretKind.TOKEN) is None


def _unrecognized(position: str, *, lasts: bool) -> Decided:
    return Decided(DenyReason.TOKEN_UNRECOGNIZED, "", "", position, lasts)
