"""One check of a watcher that may have to wait, as a value: the shells wait for it, in either dialect.

It captures when it begins, looks at the session and the captured end again after everything that it waited for and just
before its answer, and looks everything up anew. So a shell cannot forget a look: without it there is no answer. A warm
check needs none of this: `capture`, `decide` and `still_good` of `Watcher` (design section 7, "Check", "Watchers").
"""

from typing import Final, TypeAlias

from doorward.core.secret import SecretKind, find_secret
from doorward.core.watch_resolves import Sought
from doorward.core.watch_session import Session
from doorward.core.watcher import Captured, Decided, Need, Watcher

# How often a check begins anew, or seeks what went again meanwhile, before it is left to the server.
MOST_BEGINNINGS: Final = 4
MOST_ROUNDS: Final = 16

Outcome: TypeAlias = Decided | Sought | Need


class Check:
    """One check that may have to wait: `step` again after each thing it asked for, until it is decided or given up.

    Whatever was awaited, the session and the captured end are looked at again before anything else, and everything is
    looked up anew. In another session the check begins anew; past the end it is left to the server.
    """

    __slots__ = (
        "_account_id",
        "_beginnings",
        "_captured",
        "_decided",
        "_permission",
        "_presented",
        "_project_id",
        "_rounds",
        "_watcher",
    )

    def __init__(
        self, watcher: Watcher, presented: bytes, permission: str, account_id: str | None, project_id: str | None
    ) -> None:
        self._watcher = watcher
        self._presented = presented
        self._permission = permission
        self._account_id = account_id
        self._project_id = project_id
        self._captured: Captured | None = None
        self._decided: Decided | None = None
        self._beginnings = 0
        self._rounds = 0

    def step(self, now_ns: int, *, failed: bool = False) -> Outcome:
        """Goes on at now_ns; `failed`: what it waited for could not be found out.

        Answers `Sought`: send its message, if it has one, wait for that number to be answered or the session to end,
        and step again. `Need.LOOK_AGAIN`: read the clock and step again at once. `Need.SERVER`: ask the server. A
        `Decided` is the answer, and may go out.
        """
        if failed:
            return Need.SERVER
        watcher, captured = self._watcher, self._captured
        if captured is None or watcher.session is not captured.session:
            return self._begin(now_ns)
        if not watcher.still_good(captured, now_ns):
            return Need.SERVER
        if self._decided is not None:
            return self._decided
        return self._go_on(captured, now_ns)

    def _begin(self, now_ns: int) -> Outcome:
        self._beginnings += 1
        self._decided = None
        self._captured = captured = self._watcher.capture(now_ns)
        if captured is None or self._beginnings > MOST_BEGINNINGS:
            return Need.SERVER
        return self._go_on(captured, now_ns)

    def _go_on(self, captured: Captured, now_ns: int) -> Outcome:
        while self._rounds < MOST_ROUNDS:
            self._rounds += 1
            found = self._watcher.decide(
                captured, self._presented, self._permission, self._account_id, self._project_id, now_ns
            )
            if isinstance(found, Decided):
                self._decided = found
                return Need.LOOK_AGAIN
            if found is not Need.COMPILED:
                return self._seek(captured.session, found)
            self._recompile(captured.session)
        return Need.SERVER

    def _seek(self, session: Session, need: Need) -> Outcome:
        sought: Sought | None = None
        if need is Need.TOKEN:
            secret = find_secret(self._presented, SecretKind.TOKEN)
            if secret is not None:
                sought = session.resolves.token(session.tables.proofs.proof_of(self._presented), secret)
        elif need is Need.PROJECT and self._project_id is not None:
            sought = session.resolves.project(self._project_id)
        elif need is Need.LOOK_AGAIN:
            return need
        return Need.SERVER if sought is None else sought

    def _recompile(self, session: Session) -> None:
        proved = session.tables.proofs.find(session.tables.proofs.proof_of(self._presented))
        if proved is not None:
            session.recompile(proved[0])
