"""One session of a watcher: everything that it knows through one stream, and how a message of that stream changes it.

A session is one stream, and nothing outlives it: position, sub-lease, asks, caches and resolves under way all hang here
and go with it. `take` applies a message and only then returns its acknowledgement, so that nothing can be acknowledged
that was not applied. Called by `watcher.Watcher`; no await, no clock, no I/O (design section 7, "Watchers").
"""

from dataclasses import dataclass
from typing import Final

from doorward.core.catalog import Catalog, CatalogInvalid
from doorward.core.catalog_document import SCHEMA
from doorward.core.entries import ACCOUNT_ID, ACCOUNT_PLAN, TOKEN_ACCOUNT_ID, account_entry, token_entry
from doorward.core.lease import DatabaseTime
from doorward.core.matrix import compile_token
from doorward.core.revision import EpochMismatch, Revision, RevisionMalformed
from doorward.core.watch_messages import (
    Ack,
    Ask,
    CatalogSent,
    Evict,
    Failure,
    Forget,
    FromReplica,
    LeaseGrant,
    ProjectSnapshot,
    Start,
    TokenSnapshot,
    ToReplica,
    Unrecognized,
)
from doorward.core.watch_resolves import Resolves, Wanted
from doorward.core.watch_tables import WatchBounds, WatchTables

MOST_FORGOTTEN: Final = 1_000  # of the contract, in one message
# Asks that a replica without a lease left unanswered; more than are sent within a hold, so that none counts in vain.
MOST_ASKS: Final = 16


class WatchViolation(Exception):
    """The replica sent what the contract excludes; the session has been given up, and its stream is to be ended."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a message led to: what to send now, in this order, and the resolves that are answered or have failed.

    `ended`: the session is over, and what is to be sent is its last message.
    """

    send: tuple[ToReplica, ...] = ()
    answered: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    ended: bool = False


class Session:
    """What one stream has told. `started` is None until its `start`; `catalog` is None while there is none to decide by.

    `step` is odd while a message is being applied: who reads beside the writer compares it before and after, so that no
    decision mixes two states. `end_ns` is the end of the sub-lease, None before the first.

    `answers` is for whoever reads: what was decided since the last message and `lasts`, by what was asked. The next message
    puts an empty one in its place before it is done, so that who has taken it before looking anything up finds nothing in
    it that is older. A bound on it is theirs to keep; a touch that it spares was made since the last message.
    """

    __slots__ = (
        "_asks",
        "_bounds",
        "_last_ask",
        "_revision",
        "_time",
        "answers",
        "catalog",
        "end_ns",
        "position",
        "resolves",
        "sequence",
        "started",
        "step",
        "tables",
    )

    def __init__(self, bounds: WatchBounds, time: DatabaseTime) -> None:
        self._bounds = bounds
        self._time = time
        self._revision: Revision | None = None
        self._asks: dict[int, int] = {}  # number -> t0
        self._last_ask = 0
        self.started: Start | None = None
        self.position = ""
        self.sequence = 0
        self.end_ns: int | None = None
        self.catalog: Catalog | None = None
        self.resolves = Resolves()
        self.tables = WatchTables(bounds)
        self.step = 0
        self.answers: dict[object, object] = {}

    def ask(self, t0_ns: int) -> Ask:
        """Asks for a sub-lease; t0_ns was read before this, and counts for this ask alone."""
        self._last_ask += 1
        self._asks[self._last_ask] = t0_ns
        self._asks.pop(self._last_ask - MOST_ASKS, None)
        return Ask(self._last_ask)

    def recompile(self, token_id: str) -> None:
        """Compiles a held token under the catalog and its account's plan, if all three are there."""
        token = self.tables.tokens.peek(token_id)
        account = None if token is None else self.tables.accounts.peek(token[TOKEN_ACCOUNT_ID])
        if token is not None and account is not None and self.catalog is not None:
            self.tables.tokens.put(token_id, compile_token(token, self.catalog, account[ACCOUNT_PLAN]))

    def give_up(self) -> None:
        """Ends what it could decide by: the sub-lease, any grant on the way, the caches, the resolves."""
        self.end_ns = None
        self._asks.clear()
        self.resolves.clear()
        self.catalog = None
        self.answers = {}
        self.tables.clear()

    def take(self, message: FromReplica, now_ns: int) -> Taken:
        """Applies the next message of the stream, then acknowledges it.

        Raises:
            WatchViolation: the message is none that may come now; the session is not to be used any more.
        """
        revision = self._admit(message)
        self.step += 1
        taken = self._apply(message.body, now_ns)
        self.sequence, self.position, self._revision = message.sequence, message.position, revision
        self.answers = {}
        self.step += 1
        return Taken((Ack(self.position), *self._forgets()), taken.answered, taken.failed)

    def _admit(self, message: FromReplica) -> Revision:
        """The message's position, if message and position follow what was taken."""
        if message.sequence != self.sequence + 1:
            raise WatchViolation(f"message {message.sequence} does not follow message {self.sequence}")
        if isinstance(message.body, Start) is not (self.sequence == 0):
            raise WatchViolation("`start` must be the first message, and no other")
        try:
            revision = Revision.parse(message.position)
            if self._revision is not None and revision < self._revision:
                raise WatchViolation(f"position {revision} is before {self._revision}")
        except (RevisionMalformed, EpochMismatch) as error:
            raise WatchViolation(str(error)) from error
        return revision

    def _apply(self, body: object, now_ns: int) -> Taken:
        match body:
            case Start():
                self.started = body
                self.tables = WatchTables(self._bounds.within(body.max_held_keys))
            case CatalogSent():
                self.catalog = find_catalog(body)
            case Evict():
                self._evict(body)
            case LeaseGrant():
                self._grant(body, now_ns)
            case TokenSnapshot():
                self._token(body, self._answered(body.id))
                return Taken(answered=(body.id,))
            case Unrecognized():
                self._unrecognized(body, self._answered(body.id))
                return Taken(answered=(body.id,))
            case ProjectSnapshot():
                self._project(body, self._answered(body.id))
                return Taken(answered=(body.id,))
            case Failure():
                self._answered(body.id)
                return Taken(failed=(body.id,))
            case _:
                raise WatchViolation(f"a message of the kind {type(body).__name__} is not known")
        return Taken()

    def _evict(self, evict: Evict) -> None:
        if evict.everything:
            self.tables.clear()
        for key in evict.keys:
            self.tables.evict(key)
        if evict.catalog or evict.everything:
            self.catalog = None  # until the one that follows

    def _grant(self, grant: LeaseGrant, now_ns: int) -> None:
        t0_ns = self._asks.get(grant.ask)
        if t0_ns is None:
            return  # of no ask of this session, or of one that is older than what a grant has answered
        if self.started is not None and grant.length_ns > self.started.hold_ns:
            raise WatchViolation("a sub-lease is longer than the hold")
        self._asks = {number: other_ns for number, other_ns in self._asks.items() if number > grant.ask}
        self._time.observe(grant.latest_us, t0_ns, now_ns)
        end_ns = t0_ns + grant.length_ns
        self.end_ns = end_ns if self.end_ns is None else max(self.end_ns, end_ns)

    def _token(self, found: TokenSnapshot, wanted: Wanted) -> None:
        if wanted.proof is None or wanted.subject_id != found.token_id:
            raise WatchViolation("a snapshot is of another token than was asked for")
        account = account_entry(*found.account)
        token = token_entry(
            found.token_id,
            account[ACCOUNT_ID],
            revoked=found.revoked,
            disabled=found.disabled,
            expire_us=found.expire_us,
            secrets=((version, None, None, end_us) for version, end_us in found.secrets),
            grants=found.grants,
        )
        if self.catalog is not None:
            token = compile_token(token, self.catalog, account[ACCOUNT_PLAN])
        named = dict.fromkeys(project_id for _, project_ids in found.grants for project_id in project_ids or ())
        self.tables.put_token(wanted.proof, found.secret_version, token, account, named)

    def _unrecognized(self, found: Unrecognized, wanted: Wanted) -> None:
        if wanted.proof is None or wanted.subject_id != found.token_id:
            raise WatchViolation("a snapshot is of another secret than was asked for")
        self.tables.put_unrecognized(wanted.proof, found.token_id)

    def _project(self, found: ProjectSnapshot, wanted: Wanted) -> None:
        if wanted.proof is not None or wanted.subject_id != found.project_id:
            raise WatchViolation("a snapshot is of another project than was asked for")
        self.tables.put_project(found.project_id, found.account_id)

    def _answered(self, number: int) -> Wanted:
        wanted = self.resolves.answered(number)
        if wanted is None:
            raise WatchViolation(f"resolve {number} is not under way")
        return wanted

    def _forgets(self) -> tuple[Forget, ...]:
        dropped = self.tables.take_dropped()
        return tuple(
            Forget(dropped[first : first + MOST_FORGOTTEN], self.sequence)
            for first in range(0, len(dropped), MOST_FORGOTTEN)
        )


def find_catalog(sent: CatalogSent) -> Catalog | None:
    """The catalog as a value, or None if its form or its rules are not known here: then the server decides."""
    if sent.schema != SCHEMA:
        return None
    resources = (
        {name: {"title": name, "actions": list(actions)} for name, actions in part.items()}
        for part in (sent.account_resources, sent.project_resources)
    )
    sets = {
        name: {"title": name, "read": list(read), "write": list(write)}
        for name, (read, write) in sent.permission_sets.items()
    }
    plans = {name: {"title": name, "permission_sets": list(covered)} for name, covered in sent.plans.items()}
    document: dict[str, object] = {"schema": sent.schema, "version": sent.label}
    document.update(zip(("account_resources", "project_resources"), resources, strict=True))
    document.update(permission_sets=sets, plans=plans)
    try:
        return Catalog.build(document, sent.version)
    except CatalogInvalid:
        return None
