"""Tokens of every kind, COPYed past the door, and what a list of them must show: filters as plain Python over all of them.

population = a_population(random, {"acme": 300, "other": 100})
await copy_population(connection, population)
assert found == oracle(population, "acme", wanted)
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from doorward_server.model import Grant, Token, TokenFilter, TokenState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from doorward_server.storage.pool import Connection

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SETS = ("member", "job_admin", "metadata_only", "billing_admin")
PROJECTS = ("p1", "p2", "p3", "p4")
CREATORS = ("operator:anna", "operator:bert", "token:maker")
NAMES = ("nightly", "nightly jobs", "Nightly", "ingest é", "ingest %_", "x")
LABELS = {"team": ("data", "web", ""), "env": ("prod", "test")}


def seeded(text: str) -> Random:
    """Random numbers that are the same each time."""
    return Random(text)  # noqa: S311 - for populations, not for secrets


def a_population(random: Random, sizes: Mapping[str, int], *, live: float = 0.6) -> list[Token]:
    """So many tokens in each account, the oldest first; some `live` of them not revoked."""
    return [
        _a_token(random, f"{account_id}-{ordinal}", account_id, ordinal, live)
        for account_id, size in sizes.items()
        for ordinal in range(1, size + 1)
    ]


def _a_token(random: Random, token_id: str, account_id: str, ordinal: int, live: float) -> Token:
    created = NOW - timedelta(days=random.randrange(1, 30))
    used = created + timedelta(days=random.randrange(0, 29))
    return Token(
        token_id=token_id,
        account_id=account_id,
        display_name=random.choice(NAMES),
        description="",
        labels={key: random.choice(values) for key, values in LABELS.items() if random.random() < 0.7},
        grants=tuple(_some_grants(random)),
        allow_self_rotation=False,
        disabled=random.random() < 0.2,
        create_time=created,
        update_time=created,
        expire_time=NOW + timedelta(days=random.randrange(-5, 6)) if random.random() < 0.5 else None,
        revoke_time=None if random.random() < live else NOW,
        revoke_reason="",
        created_by=random.choice(CREATORS),
        ordinal=ordinal,
        revision=1,
        last_used_time=used if used < NOW and random.random() < 0.7 else None,
    )


def _some_grants(random: Random) -> Iterator[Grant]:
    for name in sorted(random.sample(SETS, random.randrange(1, 4))):
        on_all = random.random() < 0.3
        yield Grant(name, None if on_all else tuple(sorted(random.sample(PROJECTS, random.randrange(1, 4)))))


async def copy_population(connection: Connection, population: Sequence[Token]) -> None:
    """Writes all of their rows, and what the planner should know of them."""
    # Else the database would look up every row that a row refers to.
    await connection.execute("SET session_replication_role = replica")
    issued = Counter(token.account_id for token in population)
    live = Counter(token.account_id for token in population if token.revoke_time is None)
    await connection.executemany(
        "INSERT INTO accounts (account_id, display_name, plan, state, create_time, update_time, live_tokens,"
        " issued_tokens, revision) VALUES ($1, '', 'team', 'active', now(), now(), $2, $3, 1)",
        [(account_id, live[account_id], issued[account_id]) for account_id in issued],
    )
    for table, columns, rows in _tables(population):
        await connection.copy_records_to_table(table, records=rows, columns=columns.split())
    await connection.execute("RESET session_replication_role")
    await connection.execute("VACUUM (ANALYZE)")


def _tables(population: Sequence[Token]) -> Iterator[tuple[str, str, Iterable[tuple[Any, ...]]]]:
    columns = (
        "token_id account_id display_name description labels allow_self_rotation disabled create_time update_time"
        " expire_time revoke_time revoke_reason created_by ordinal revision"
    )
    yield (
        "tokens",
        columns,
        [
            tuple(json.dumps(token.labels) if name == "labels" else getattr(token, name) for name in columns.split())
            for token in population
        ],
    )
    yield (
        "grants",
        "token_id account_id permission_set scope ordinal",
        [
            (token.token_id, token.account_id, grant.permission_set, scope, token.ordinal)
            for token in population
            for grant in token.grants
            for scope in (("*",) if grant.project_ids is None else grant.project_ids)
        ],
    )
    yield (
        "token_labels",
        "account_id key value ordinal token_id",
        [
            (token.account_id, key, value, token.ordinal, token.token_id)
            for token in population
            for key, value in token.labels.items()
        ],
    )
    yield (
        "token_secrets",
        "token_id version bcrypt_hash issued_to",
        [(token.token_id, 1, "none", token.created_by) for token in population],
    )
    yield (
        "token_activity",
        "token_id account_id last_used_time idle_since ordinal",
        [
            (token.token_id, token.account_id, token.last_used_time, _idle_since(token), token.ordinal)
            for token in population
        ],
    )


def _idle_since(token: Token) -> datetime | None:
    return (token.last_used_time or token.create_time) if token.revoke_time is None else None


def state_of(token: Token) -> TokenState:
    """At NOW."""
    if token.revoke_time is not None:
        return TokenState.REVOKED
    if token.expire_time is not None and token.expire_time <= NOW:
        return TokenState.EXPIRED
    return TokenState.DISABLED if token.disabled else TokenState.ACTIVE


def matches(token: Token, wanted: TokenFilter) -> bool:
    """What the contract's comments say of each filter, word by word; `obtained_by` is not among them."""
    live = token.revoke_time is None
    used, unused_since, expires_before = token.last_used_time, wanted.unused_since, wanted.expires_before
    return all(
        (
            wanted.state is None or state_of(token) is wanted.state,
            not wanted.live_only or live,
            not wanted.permission_set or wanted.permission_set in {grant.permission_set for grant in token.grants},
            not wanted.project_id
            or any(grant.project_ids is None or wanted.project_id in grant.project_ids for grant in token.grants),
            wanted.labels.items() <= token.labels.items(),
            not wanted.created_by or token.created_by == wanted.created_by,
            unused_since is None
            or (live and token.create_time <= unused_since and (used is None or used < unused_since)),
            expires_before is None or (live and token.expire_time is not None and token.expire_time < expires_before),
            token.display_name.startswith(wanted.display_name_prefix),
        )
    )


def oracle(population: Sequence[Token], account_id: str, wanted: TokenFilter) -> list[str]:
    """The ids of the account's tokens that match, in the list's order."""
    found = [token for token in population if token.account_id == account_id and matches(token, wanted)]
    if wanted.expires_before is not None:
        return [token.token_id for token in sorted(found, key=lambda token: (token.expire_time, token.ordinal))]
    if wanted.unused_since is not None:
        return [token.token_id for token in sorted(found, key=lambda token: (_idle_since(token), token.ordinal))]
    return [token.token_id for token in sorted(found, key=lambda token: -token.ordinal)]


def some_filter(random: Random, names: Iterable[str]) -> TokenFilter:
    """A filter with these fields set."""
    values = {name: _some_value(random, name) for name in names}
    return TokenFilter(**values)


def _some_value(random: Random, name: str) -> Any:
    key = random.choice(sorted(LABELS))
    return {
        "state": random.choice(list(TokenState)),
        "live_only": True,
        "permission_set": random.choice((*SETS, "unheld")),
        "project_id": random.choice((*PROJECTS, "p9")),
        "labels": {key: random.choice(LABELS[key])},
        "created_by": random.choice((*CREATORS, "token:nobody")),
        "unused_since": NOW - timedelta(days=random.randrange(0, 20)),
        "expires_before": NOW + timedelta(days=random.randrange(-6, 7)),
        "display_name_prefix": random.choice(("n", "nightly", "nightly ", "ingest ", "ingest %", "N", "é", "zz")),
    }[name]
