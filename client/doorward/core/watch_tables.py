"""What one session of a watcher holds: tokens, accounts, projects, what was unknown, and the proofs of secrets.

Everything is bounded. What has to go for room is remembered as dropped until `take_dropped`, because the replica counts
it as held until it is told (`Forget`). No fence is needed here, unlike in a replica's caches: messages are taken in the
order of the stream, and nothing of it outlives its session. One thread writes, others may read.
Written by `watch_session`, read by `watcher` at every check (design section 7, "Watchers").
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from doorward.core.entries import ACCOUNT_ID, TOKEN_ID, AccountEntry, TokenEntry
from doorward.core.proofs import Proofs
from doorward.core.second_chance import SecondChanceMap
from doorward.core.token_table import UNKNOWN, Unknown
from doorward.core.watch_messages import KeyKind, WatchKey

_SHARES: Final = 32


@dataclass(frozen=True, slots=True)
class WatchBounds:
    """The most entries of each kind; `unknown` bounds the unrecognized texts, and the unknown projects too."""

    tokens: int = 100_000
    accounts: int = 100_000
    projects: int = 50_000
    unknown: int = 5_000

    def within(self, max_held_keys: int) -> "WatchBounds":
        """These bounds, or lower ones, so that all together are fewer than a session may hold: a sixteenth is left.

        That is for what a snapshot brought and the replica does not know yet to be forgotten.
        """
        share = max_held_keys // _SHARES
        return WatchBounds(
            max(1, min(self.tokens, 11 * share)),
            max(1, min(self.accounts, 11 * share)),
            max(1, min(self.projects, 6 * share)),
            max(1, min(self.unknown, share)),
        )


class UnrecognizedTexts:
    """Proofs of texts that were not recognized, by text and never by id: another text with the same id may be right."""

    __slots__ = ("_by_id", "_id_of", "find")

    def __init__(self, capacity: int) -> None:
        self._id_of: SecondChanceMap[bytes, str] = SecondChanceMap(capacity)
        self._by_id: dict[str, tuple[bytes, ...]] = {}
        self.find: Final = self._id_of.find

    def __len__(self) -> int:
        return len(self._id_of)

    def names(self, token_id: str) -> bool:
        """Whether a text with this id is remembered."""
        return token_id in self._by_id

    def remember(self, proof: bytes, token_id: str) -> str | None:
        """Keeps a text; returns the id of one that had to go for it, if one had to."""
        if self._id_of.peek(proof) is None:
            self._by_id[token_id] = (*self._by_id.get(token_id, ()), proof)
        evicted = self._id_of.put(proof, token_id)
        if evicted is None:
            return None
        gone, its_id = evicted
        rest = tuple(other for other in self._by_id[its_id] if other != gone)
        if rest:
            self._by_id[its_id] = rest
        else:
            del self._by_id[its_id]
        return its_id

    def forget(self, token_id: str) -> None:
        """Drops every text with this id."""
        for proof in self._by_id.pop(token_id, ()):
            self._id_of.pop(proof)


class WatchTables:
    """The caches of one session. What is put in counts as held at the replica already."""

    __slots__ = ("_dropped", "accounts", "projects", "proofs", "tokens", "unknown_projects", "unrecognized")

    def __init__(self, bounds: WatchBounds) -> None:
        self.tokens: SecondChanceMap[str, TokenEntry] = SecondChanceMap(bounds.tokens)
        self.accounts: SecondChanceMap[str, AccountEntry] = SecondChanceMap(bounds.accounts)
        self.projects: SecondChanceMap[str, str] = SecondChanceMap(bounds.projects)
        self.unknown_projects: SecondChanceMap[str, Unknown] = SecondChanceMap(bounds.unknown)
        self.proofs = Proofs(bounds.tokens)
        self.unrecognized = UnrecognizedTexts(bounds.unknown)
        self._dropped: list[WatchKey] = []

    def put_token(
        self, proof: bytes, version: int, token: TokenEntry, account: AccountEntry, project_ids: Iterable[str]
    ) -> None:
        """Keeps a token that this text was recognized as, its account, and the projects that its grants name."""
        token_id, account_id = token[TOKEN_ID], account[ACCOUNT_ID]
        evicted = self.tokens.put(token_id, token)
        if evicted is not None:
            # Without their token its proofs decide nothing, and the replica will not tell when they end.
            self._forget_texts(evicted[0])
            self._dropped.append(WatchKey(KeyKind.TOKEN, evicted[0]))
        gone = self.accounts.put(account_id, account)
        if gone is not None:
            self._dropped.append(WatchKey(KeyKind.ACCOUNT, gone[0]))
        for project_id in project_ids:
            self.put_project(project_id, account_id)
        self.proofs.remember(proof, token_id, version)

    def put_unrecognized(self, proof: bytes, token_id: str) -> None:
        """Keeps that this text is not recognized. A proof of it, whose overlap may have ended meanwhile, goes."""
        self.proofs.forget(token_id)
        evicted_id = self.unrecognized.remember(proof, token_id)
        if evicted_id is not None:
            self._dropped.append(WatchKey(KeyKind.TOKEN, evicted_id))

    def put_project(self, project_id: str, account_id: str | None) -> None:
        """Keeps the account of a project, or that there is no such project."""
        if account_id is None:
            self.projects.pop(project_id)
            unknown = self.unknown_projects.put(project_id, UNKNOWN)
            gone_id = None if unknown is None else unknown[0]
        else:
            self.unknown_projects.pop(project_id)
            known = self.projects.put(project_id, account_id)
            gone_id = None if known is None else known[0]
        if gone_id is not None:
            self._dropped.append(WatchKey(KeyKind.PROJECT, gone_id))

    def evict(self, key: WatchKey) -> None:
        """Drops what has changed, and everything that is remembered of texts with a token's id."""
        kind, key_id = key
        if kind is KeyKind.TOKEN:
            self.tokens.pop(key_id)
            self._forget_texts(key_id)
        elif kind is KeyKind.ACCOUNT:
            self.accounts.pop(key_id)
        else:
            self.projects.pop(key_id)
            self.unknown_projects.pop(key_id)

    def clear(self) -> None:
        """Drops everything."""
        for table in (self.tokens, self.accounts, self.projects, self.unknown_projects, self.proofs):
            table.clear()
        self.unrecognized = UnrecognizedTexts(self.unknown_projects.capacity)
        self._dropped.clear()

    def holds(self, key: WatchKey) -> bool:
        """Whether anything is kept that a change of this key would end."""
        kind, key_id = key
        if kind is KeyKind.TOKEN:
            return self.tokens.peek(key_id) is not None or self.unrecognized.names(key_id)
        if kind is KeyKind.ACCOUNT:
            return self.accounts.peek(key_id) is not None
        return self.projects.peek(key_id) is not None or self.unknown_projects.peek(key_id) is not None

    def take_dropped(self) -> tuple[WatchKey, ...]:
        """What went for room since the last call and is not held by another entry, or again: to be forgotten, now.

        Now, because a later snapshot may bring a key back, and a Forget that names a later message would end that too.
        """
        if not self._dropped:
            return ()
        dropped = tuple(key for key in dict.fromkeys(self._dropped) if not self.holds(key))
        self._dropped.clear()
        return dropped

    def _forget_texts(self, token_id: str) -> None:
        self.proofs.forget(token_id)
        self.unrecognized.forget(token_id)
