"""What the database shows of a mutation: its effect, its place in the log, its event in the audit. For `verdicts.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.history import Mutation, Subject
    from tests.cluster.lines import Rows

__all__ = ["NOTHING", "WHOLE", "kept"]

WHOLE: Final = (True, True, True)
NOTHING: Final = (False, False, False)


class _Trace(NamedTuple):
    """Where a mutation shows. `least`: how often its subject was changed and audited alike before, by the test itself."""

    name: Callable[[Subject], str]
    key: Callable[[Subject], str]
    effect: str
    least: int = 0
    # Of a change to several: the name of what its audit event is about.
    audited: Callable[[Subject], str] | None = None


def _of_token(effect: str) -> _Trace:
    return _Trace(lambda subject: f"token:{subject.token_id}", lambda subject: subject.token_id, effect)


def _of_account(effect: str, least: int = 0) -> _Trace:
    return _Trace(lambda subject: f"account:{subject.account_id}", lambda subject: subject.account_id, effect, least)


def _of_project(effect: str) -> _Trace:
    return _Trace(lambda subject: f"project:{subject.project_id}", lambda subject: subject.project_id, effect)


_TRACES: Final = {
    "RevokeToken": _of_token("SELECT revoke_time IS NOT NULL FROM tokens WHERE token_id = $1"),
    "RevokeTokensByFilter": _of_token("SELECT revoke_time IS NOT NULL FROM tokens WHERE token_id = $1")._replace(
        audited=lambda subject: f"account:{subject.account_id}"
    ),
    "IssueToken": _of_token("SELECT count(*) = 1 FROM tokens WHERE token_id = $1"),
    "UpdateToken": _of_token(
        "SELECT count(*) = 0 FROM grants WHERE token_id = $1 AND permission_set <> 'metadata_only'"
    ),
    "RotateToken": _of_token("SELECT count(*) > 0 FROM token_secrets WHERE token_id = $1 AND version > 1"),
    "DisableToken": _of_token("SELECT disabled FROM tokens WHERE token_id = $1"),
    "PutAccount": _of_account("SELECT plan = 'team' FROM accounts WHERE account_id = $1", least=1),
    "SuspendAccount": _of_account("SELECT state = 'suspended' FROM accounts WHERE account_id = $1"),
    "DeleteAccount": _of_account("SELECT state = 'deleted' FROM accounts WHERE account_id = $1"),
    "PutProject": _of_project("SELECT count(*) = 1 FROM projects WHERE project_id = $1"),
    "DeleteProject": _of_project("SELECT count(*) = 0 FROM projects WHERE project_id = $1"),
    "RevokeOperator": _Trace(
        lambda subject: f"operator:{subject.operator_id}",
        lambda subject: subject.operator_id,
        "SELECT revoke_time IS NOT NULL FROM operators WHERE operator_id = $1",
    ),
}
_LOGGED: Final = "SELECT count(*) FROM changes WHERE kind = $1 AND $2 = ANY(subjects)"
_AUDITED: Final = "SELECT count(*) FROM audit_events WHERE action = $1 AND subject = $2"
_CATALOG: Final = "SELECT position($1 IN catalog::text) = 0 FROM state"
# Every apply raises the version, which begins at 1.
_APPLIED: Final = "SELECT catalog_version - 1 FROM state"


def kept(mutation: Mutation, rows: Rows) -> tuple[bool, bool, bool]:
    """Whether its effect is there, its row in the log, and its event in the audit."""
    subject = mutation.subject
    assert subject is not None
    if mutation.rpc == "ApplyCatalog":
        return _kept_catalog(subject, rows)
    trace = _TRACES[mutation.rpc]
    names = (trace.name(subject), (trace.audited or trace.name)(subject))
    logged, audited = (
        int(rows.value(statement, mutation.rpc, name)) > trace.least
        for statement, name in zip((_LOGGED, _AUDITED), names, strict=True)
    )
    return bool(rows.value(trace.effect, trace.key(subject))), logged, audited


def _kept_catalog(subject: Subject, rows: Rows) -> tuple[bool, bool, bool]:
    """Of the one catalog for all: its rows are there if they are as many as it was applied."""
    effect, applied = bool(rows.value(_CATALOG, subject.permission_set)), int(rows.value(_APPLIED))
    logged, audited = (
        effect is (int(rows.value(statement, "ApplyCatalog", "catalog:")) == applied)
        for statement in (_LOGGED, _AUDITED)
    )
    return effect, logged, audited
