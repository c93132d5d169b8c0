"""BatchRevokeTokens and RevokeTokensByFilter: many tokens end at once, those and no others, and one wait for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.v1 import types_pb2
from doorward.v1.account_admin_pb2 import DeleteAccountRequest
from doorward.v1.token_admin_pb2 import (
    BatchRevokeTokensRequest,
    BatchRevokeTokensResponse,
    IssueTokenResponse,
    ListAuditEventsRequest,
    RevokeTokensByFilterRequest,
    RevokeTokensByFilterResponse,
    RotateTokenRequest,
)
from doorward_server.service.revoke_many import MOST_AT_ONCE
from tests.support.server import bearer
from tests.support.wire import OwnAccount, an_account, ask, check, code_of, fresh_id, on_all, refused, verdict

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs

Metadata = tuple[tuple[str, str], ...]
REVOKED = types_pb2.TOKEN_STATE_REVOKED


def issued(account: OwnAccount, number: int, **fields: Any) -> list[IssueTokenResponse]:
    return [account.issue(on_all("metadata_only"), **fields) for _ in range(number)]


def batch(stubs: Stubs, account: OwnAccount, ids: list[str], **fields: Any) -> BatchRevokeTokensResponse:
    request = BatchRevokeTokensRequest(account_id=account.account_id, token_ids=ids, **fields)
    return ask(stubs.tokens.BatchRevokeTokens, request, stubs.admin)


def by_filter(
    stubs: Stubs, account: OwnAccount, metadata: Metadata | None = None, **fields: Any
) -> RevokeTokensByFilterResponse:
    request = RevokeTokensByFilterRequest(account_id=account.account_id, **fields)
    return ask(stubs.tokens.RevokeTokensByFilter, request, metadata or stubs.admin)


def states(account: OwnAccount, ids: list[str]) -> list[str]:
    return [types_pb2.TokenState.Name(account.token(token_id).state).removeprefix("TOKEN_STATE_") for token_id in ids]


def may(stubs: Stubs, account: OwnAccount, secret: str) -> str:
    return verdict(check(stubs, secret, "public_models:read", account_id=account.account_id))


# ---- BatchRevokeTokens


def test_a_batch_is_revoked_at_once_and_answered_in_its_own_order(stubs: Stubs, account: OwnAccount) -> None:
    tokens = issued(account, 4)
    kept, *named = [answer.token.token_id for answer in tokens]
    named = [named[2], named[0], named[1]]
    assert may(stubs, account, tokens[1].secret) == "ALLOWED"

    answer = batch(stubs, account, named, reason="audit")

    assert [token.token_id for token in answer.tokens] == named
    assert {(token.state, token.revoke_reason) for token in answer.tokens} == {(REVOKED, "audit")}
    assert list(answer.tokens) == [account.token(token_id) for token_id in named]
    assert len({token.etag for token in answer.tokens}) == 1, "one change"
    assert answer.propagation.replicas_confirmed == 1
    assert [may(stubs, account, token.secret) for token in tokens] == ["ALLOWED"] + ["TOKEN_REVOKED"] * 3
    assert states(account, [kept]) == ["ACTIVE"]


def test_tokens_that_were_revoked_before_keep_their_time_and_reason(stubs: Stubs, account: OwnAccount) -> None:
    first, second = (answer.token.token_id for answer in issued(account, 2))
    before = account.revoke(first, "contractor left").token

    answer = batch(stubs, account, [first, second], reason="audit")
    again = batch(stubs, account, [second, first], reason="another")

    assert answer.tokens[0] == before
    assert [token.revoke_reason for token in again.tokens] == ["audit", "contractor left"]
    assert list(again.tokens)[::-1] == list(answer.tokens)
    assert again.propagation.replicas_confirmed == 1, "a repeat waits again"


def test_one_unknown_id_leaves_every_token_as_it_was(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    own = issued(account, 1)[0].token.token_id
    foreign = an_account(stubs, projects=0).issue(on_all("member")).token.token_id
    unknown = fresh_id("t")
    before = rows.footprint()

    refusal = refused(
        stubs.tokens.BatchRevokeTokens,
        BatchRevokeTokensRequest(account_id=account.account_id, token_ids=[own, unknown, foreign]),
        stubs.admin,
    )

    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "TOKEN_NOT_FOUND")
    assert refusal.metadata == {"token_id": unknown}
    assert unknown in refusal.message
    assert foreign in refusal.message
    assert own not in refusal.message
    assert rows.footprint() == before
    assert states(account, [own]) == ["ACTIVE"]


def test_to_a_token_another_accounts_tokens_are_unknown_ones(stubs: Stubs, account: OwnAccount) -> None:
    itself = bearer(account.issue(on_all("account_admin")).secret)
    other = an_account(stubs, projects=0)
    foreign, unknown = other.issue(on_all("member")).token.token_id, "0" * 16
    refusals = [
        refused(
            stubs.tokens.BatchRevokeTokens,
            BatchRevokeTokensRequest(account_id=account_id, token_ids=[token_id]),
            itself,
        )
        for account_id in (account.account_id, other.account_id, "nobody")
        for token_id in (foreign, unknown)
    ]
    told = [(refusal.code, refusal.reason, refusal.text.replace(foreign, unknown)) for refusal in refusals]
    assert told[0] == told[1]
    assert told[0][:2] == ("NOT_FOUND", "TOKEN_NOT_FOUND")
    assert {(code, reason) for code, reason, _ in told[2:]} == {("NOT_FOUND", "ACCOUNT_NOT_FOUND")}
    assert {text.replace(other.account_id, "nobody") for _, _, text in told[2:]} == {told[4][2]}


def test_a_batch_that_is_only_validated_shows_the_tokens_as_they_are(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    ids = [answer.token.token_id for answer in issued(account, 2)]
    before = rows.footprint()

    answer = batch(stubs, account, ids, validate_only=True)

    assert list(answer.tokens) == [account.token(token_id) for token_id in ids]
    assert not answer.HasField("propagation")
    assert rows.footprint() == before


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({}, [("token_ids", "FIELD_REQUIRED")]),
        ({"token_ids": ["a", "b", "a"]}, [("token_ids[2]", "FIELD_DUPLICATE")]),
        ({"token_ids": ["a b", "", "x" * 65]}, [("token_ids[0]", "FIELD_MALFORMED"), ("token_ids[1]", "FIELD_REQUIRED"),
                                                ("token_ids[2]", "FIELD_TOO_LONG")]),
        ({"token_ids": [f"t{number}" for number in range(1001)]}, [("token_ids", "TOO_MANY_ITEMS")]),
        ({"token_ids": ["a"], "reason": "x" * 501}, [("reason", "FIELD_TOO_LONG")]),
    ],
)  # fmt: skip
def test_a_batch_of_the_wrong_form_is_refused_with_everything_that_is_wrong(
    stubs: Stubs, still: OwnAccount, fields: dict[str, Any], bad: list[tuple[str, str]]
) -> None:
    request = BatchRevokeTokensRequest(account_id=still.account_id, **fields)
    refusal = refused(stubs.tokens.BatchRevokeTokens, request, stubs.admin)
    assert (refusal.reason, refusal.bad_fields) == ("INVALID_FIELDS", bad)


def test_a_secret_given_for_an_id_or_in_the_reason_is_refused_and_not_repeated(
    stubs: Stubs, account: OwnAccount
) -> None:
    secret = issued(account, 1)[0].secret
    request = BatchRevokeTokensRequest(account_id=account.account_id, token_ids=[secret], reason=f"found {secret}")
    refusal = refused(stubs.tokens.BatchRevokeTokens, request, stubs.admin)
    assert refusal.bad_fields == [("reason", "FIELD_CONTAINS_SECRET"), ("token_ids[0]", "FIELD_CONTAINS_SECRET")]
    assert secret not in refusal.text


def test_the_audit_of_a_batch_is_found_by_each_of_its_tokens(stubs: Stubs, account: OwnAccount) -> None:
    ids = [answer.token.token_id for answer in issued(account, 2)]
    revision = batch(stubs, account, ids, reason="audit").propagation.revision
    for token_id in ids:
        request = ListAuditEventsRequest(account_id=account.account_id, token_id=token_id, action="BatchRevokeTokens")
        (event,) = ask(stubs.tokens.ListAuditEvents, request, stubs.admin).audit_events
        assert (event.revision, event.subject) == (revision, f"account:{account.account_id}")
        assert MessageToDict(event.before) == {"state": "live"}
        assert MessageToDict(event.after) == {"state": "revoked", "reason": "audit"}


def test_a_repeat_is_in_the_audit_of_each_token_too(stubs: Stubs, account: OwnAccount) -> None:
    ids = [answer.token.token_id for answer in issued(account, 2)]
    batch(stubs, account, ids, reason="audit")
    batch(stubs, account, ids, reason="again")
    for token_id in ids:
        request = ListAuditEventsRequest(account_id=account.account_id, token_id=token_id, action="BatchRevokeTokens")
        repeat, first = ask(stubs.tokens.ListAuditEvents, request, stubs.admin).audit_events
        assert (first.HasField("after"), repeat.HasField("after")) == (True, False)
        assert repeat.revision >= first.revision


# ---- RevokeTokensByFilter


def test_what_matches_every_filter_is_revoked_and_nothing_else(stubs: Stubs, account: OwnAccount) -> None:
    ids = [
        account.issue(on_all(name), labels={"team": team}, display_name=called).token.token_id
        for name in ("member", "job_admin")
        for team in ("data", "web")
        for called in ("nightly", "other")
    ]
    account.revoke(ids[0], "before")

    answer = by_filter(stubs, account, permission_set="member", labels={"team": "data"}, reason="leaked")

    assert list(answer.token_ids) == [ids[1]]
    assert states(account, ids) == ["REVOKED", "REVOKED"] + ["ACTIVE"] * 6
    assert [account.token(token_id).revoke_reason for token_id in ids[:2]] == ["before", "leaked"]
    assert list(by_filter(stubs, account, display_name_prefix="other").token_ids) == [ids[7], ids[5], ids[3]]
    assert list(by_filter(stubs, account, all_tokens=True).token_ids) == [ids[6], ids[4], ids[2]]
    last = by_filter(stubs, account, all_tokens=True)
    assert (list(last.token_ids), last.propagation.replicas_confirmed) == ([], 1)


def test_disabled_and_expired_tokens_are_revoked_too(stubs: Stubs, account: OwnAccount) -> None:
    soon = account.issue(on_all("member"), ttl=Duration(seconds=3600)).token.token_id
    later = account.issue(on_all("member"), ttl=Duration(seconds=864000)).token.token_id
    bound = Timestamp()
    bound.GetCurrentTime()
    bound.seconds += 86400
    assert list(by_filter(stubs, account, expires_before=bound).token_ids) == [soon]
    assert states(account, [soon, later]) == ["REVOKED", "ACTIVE"]


def test_what_would_be_revoked_is_told_and_left(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    ids = [answer.token.token_id for answer in issued(account, 3)][::-1]
    before = rows.footprint()

    answer = by_filter(stubs, account, all_tokens=True, validate_only=True)

    assert list(answer.token_ids) == ids
    assert not answer.HasField("propagation")
    assert rows.footprint() == before


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({}, [("all_tokens", "FIELD_REQUIRED")]),
        ({"reason": "x", "validate_only": True}, [("all_tokens", "FIELD_REQUIRED")]),
        ({"all_tokens": True, "permission_set": "member"}, [("all_tokens", "FIELD_CONFLICT")]),
        ({"all_tokens": True, "state": types_pb2.TOKEN_STATE_ACTIVE}, [("all_tokens", "FIELD_CONFLICT")]),
        ({"state": REVOKED}, [("state", "FIELD_OUT_OF_RANGE")]),
        ({"include_descendants": True}, [("obtained_by", "FIELD_REQUIRED")]),
        ({"obtained_by": "no id"}, [("obtained_by", "FIELD_MALFORMED")]),
        (
            {"permission_set": "no_such_set", "created_by": "x", "unused_since": Timestamp(seconds=4102444800)},
            [
                ("created_by", "FIELD_MALFORMED"),
                ("permission_set", "PERMISSION_SET_UNKNOWN"),
                ("unused_since", "FIELD_OUT_OF_RANGE"),
            ],
        ),
    ],
)
def test_a_filter_that_is_wrong_or_none_revokes_nothing(
    stubs: Stubs, still: OwnAccount, rows: Rows, fields: dict[str, Any], bad: list[tuple[str, str]]
) -> None:
    before = rows.footprint()
    request = RevokeTokensByFilterRequest(account_id=still.account_id, **fields)
    refusal = refused(stubs.tokens.RevokeTokensByFilter, request, stubs.admin)
    assert (refusal.code, refusal.reason, refusal.bad_fields) == ("INVALID_ARGUMENT", "INVALID_FIELDS", bad)
    assert rows.footprint() == before


def test_a_deleted_accounts_tokens_match_no_filter(stubs: Stubs) -> None:
    account = an_account(stubs, projects=0)
    issued(account, 1)
    ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=account.account_id), stubs.admin)
    assert list(by_filter(stubs, account, all_tokens=True).token_ids) == []


def test_a_reader_and_a_caller_may_not_revoke(stubs: Stubs, account: OwnAccount) -> None:
    reader = bearer(account.issue(on_all("read_only")).secret)
    named = BatchRevokeTokensRequest(account_id=account.account_id, token_ids=["x"])
    everything = RevokeTokensByFilterRequest(account_id=account.account_id, all_tokens=True)
    for metadata in (reader, stubs.caller):
        assert refused(stubs.tokens.BatchRevokeTokens, named, metadata).reason == "CALLER_NOT_PERMITTED"
        assert refused(stubs.tokens.RevokeTokensByFilter, everything, metadata).reason == "CALLER_NOT_PERMITTED"


# ---- what a leaked token has obtained


class Family:
    """Tokens that issue and rotate each other, by name."""

    def __init__(self, stubs: Stubs, account: OwnAccount) -> None:
        self._stubs = stubs
        self.account = account
        self.ids: dict[str, str] = {}
        self._secrets: dict[str, str] = {}

    def issue(self, name: str, by: str | None = None) -> None:
        """`by` None: an operator."""
        wanted = self.account.wanted(on_all("account_admin"), display_name=name, allow_self_rotation=True)
        answer = ask(self._stubs.tokens.IssueToken, wanted, self._as(by))
        self.ids[name], self._secrets[name] = answer.token.token_id, answer.secret

    def rotate(self, name: str, by: str | None = None) -> None:
        request = RotateTokenRequest(token_id=self.ids[name], overlap=Duration())
        self._secrets[name] = ask(self._stubs.tokens.RotateToken, request, self._as(by)).secret

    def obtained(self, by: str, *, all_of_them: bool = False) -> list[str]:
        """By name, in alphabetical order."""
        answer = by_filter(
            self._stubs,
            self.account,
            obtained_by=self.ids[by],
            include_descendants=all_of_them,
            validate_only=True,
        )
        names = {token_id: name for name, token_id in self.ids.items()}
        return sorted(names[token_id] for token_id in answer.token_ids)

    def _as(self, name: str | None) -> Metadata:
        return self._stubs.admin if name is None else bearer(self._secrets[name])


@pytest.fixture
def family(stubs: Stubs, account: OwnAccount) -> Family:
    """leaked -> child -> grandchild; leaked has rotated `taken`; `stranger` is an operator's and has issued `own`."""
    made = Family(stubs, account)
    for name in ("leaked", "taken", "stranger"):
        made.issue(name)
    made.issue("child", by="leaked")
    made.issue("grandchild", by="child")
    made.issue("own", by="stranger")
    made.rotate("taken", by="leaked")
    return made


def test_a_leaked_token_has_obtained_what_it_issued_and_what_it_rotated(family: Family) -> None:
    assert family.obtained("leaked") == ["child", "taken"]
    assert family.obtained("leaked", all_of_them=True) == ["child", "grandchild", "taken"]
    assert family.obtained("stranger") == ["own"]
    assert family.obtained("own", all_of_them=True) == []


def test_a_secret_that_was_rotated_away_since_was_obtained_all_the_same(family: Family) -> None:
    family.rotate("child")
    family.rotate("child")
    family.rotate("taken")
    assert family.obtained("leaked", all_of_them=True) == ["child", "grandchild", "taken"]


def test_what_was_obtained_by_a_token_that_is_revoked_is_found(family: Family) -> None:
    family.account.revoke(family.ids["child"])
    family.account.revoke(family.ids["leaked"])
    assert family.obtained("leaked", all_of_them=True) == ["grandchild", "taken"]


def test_tokens_that_rotated_each_other_in_a_circle_are_found_once(family: Family) -> None:
    family.rotate("leaked", by="grandchild")
    assert family.obtained("leaked", all_of_them=True) == ["child", "grandchild", "leaked", "taken"]
    assert family.obtained("leaked") == ["child", "taken"]


def test_obtained_by_is_narrowed_by_other_filters(stubs: Stubs, family: Family) -> None:
    answer = by_filter(
        stubs,
        family.account,
        obtained_by=family.ids["leaked"],
        include_descendants=True,
        display_name_prefix="grand",
        reason="leaked",
    )
    assert list(answer.token_ids) == [family.ids["grandchild"]]
    assert family.obtained("leaked", all_of_them=True) == ["child", "taken"]


def test_obtained_by_a_token_of_nobody_or_of_another_account_is_not_found(
    stubs: Stubs, family: Family, account: OwnAccount
) -> None:
    other = an_account(stubs, projects=0)
    for token_id in ("0" * 16, other.issue(on_all("member")).token.token_id):
        request = RevokeTokensByFilterRequest(account_id=family.account.account_id, obtained_by=token_id)
        refusal = refused(stubs.tokens.RevokeTokensByFilter, request, stubs.admin)
        assert (refusal.reason, refusal.metadata) == ("TOKEN_NOT_FOUND", {"token_id": token_id})


# ---- more than one transaction

INSERT_MANY = """
WITH account AS (
    UPDATE accounts SET live_tokens = live_tokens + $2::integer, issued_tokens = issued_tokens + $2::integer
    WHERE account_id = $1 RETURNING account_id, issued_tokens - $2::integer AS before
), made AS (
    INSERT INTO tokens (token_id, account_id, display_name, description, labels, allow_self_rotation, disabled, create_time,
                        update_time, created_by, ordinal, revision)
    SELECT account_id || '-' || number, account_id, 'one of many', '', '{}', false, false, now(), now(), 'operator:x',
           before + number, 1
    FROM account, generate_series(1, $2::integer) AS number
    RETURNING token_id, account_id, create_time, ordinal
)
INSERT INTO token_activity (token_id, account_id, idle_since, ordinal)
SELECT token_id, account_id, create_time, ordinal FROM made
RETURNING token_id
"""
CHANGES = """
SELECT cardinality(subjects) FROM changes WHERE account_id = $1 AND kind = 'RevokeTokensByFilter' ORDER BY revision
"""
LIVE = "SELECT live_tokens FROM accounts WHERE account_id = $1"


def test_more_tokens_than_a_transaction_takes_are_revoked_in_several_with_one_wait(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    oldest = issued(account, 1)[0]
    many = [token_id for (token_id,) in rows.fetch(INSERT_MANY, account.account_id, 2 * MOST_AT_ONCE + 10)]
    newest = issued(account, 1)[0]
    assert may(stubs, account, oldest.secret) == may(stubs, account, newest.secret) == "ALLOWED"

    answer = by_filter(stubs, account, all_tokens=True, reason="incident")

    assert list(answer.token_ids) == [newest.token.token_id, *reversed(many), oldest.token.token_id]
    assert rows.fetch(CHANGES, account.account_id) == [(MOST_AT_ONCE,), (MOST_AT_ONCE,), (12,)]
    assert rows.fetch(LIVE, account.account_id) == [(0,)]
    assert answer.propagation.replicas_confirmed == 1
    assert may(stubs, account, oldest.secret) == may(stubs, account, newest.secret) == "TOKEN_REVOKED"
    request = ListAuditEventsRequest(account_id=account.account_id, token_id=many[5])
    (event,) = ask(stubs.tokens.ListAuditEvents, request, stubs.admin).audit_events
    assert event.action == "RevokeTokensByFilter"


@pytest.mark.parametrize("others", [3, MOST_AT_ONCE - 1, MOST_AT_ONCE, MOST_AT_ONCE + 1])
def test_the_calling_token_goes_with_the_last_transaction(
    stubs: Stubs, account: OwnAccount, rows: Rows, others: int
) -> None:
    many = [token_id for (token_id,) in rows.fetch(INSERT_MANY, account.account_id, others)]
    # The newest, so that it would be the first one to go.
    caller = account.issue(on_all("account_admin"))

    answer = by_filter(stubs, account, bearer(caller.secret), all_tokens=True)

    assert list(answer.token_ids) == [caller.token.token_id, *reversed(many)]
    parts = [number for (number,) in rows.fetch(CHANGES, account.account_id)]
    assert (sum(parts), max(parts) <= MOST_AT_ONCE) == (others + 1, True)
    assert code_of(lambda: by_filter(stubs, account, bearer(caller.secret), all_tokens=True)) == "UNAUTHENTICATED"


def test_the_calling_token_stays_if_it_does_not_match(stubs: Stubs, account: OwnAccount) -> None:
    caller = account.issue(on_all("account_admin"), display_name="caller")
    target = account.issue(on_all("member"), display_name="target").token.token_id
    assert list(by_filter(stubs, account, bearer(caller.secret), permission_set="member").token_ids) == [target]
    assert states(account, [caller.token.token_id]) == ["ACTIVE"]


def test_a_filter_in_the_audit_is_told_as_it_was_asked(stubs: Stubs, account: OwnAccount) -> None:
    target = account.issue(on_all("member"), labels={"team": "data"}).token.token_id
    by_filter(stubs, account, labels={"team": "data"}, permission_set="member", reason="leaked")
    request = ListAuditEventsRequest(account_id=account.account_id, token_id=target, action="RevokeTokensByFilter")
    (event,) = ask(stubs.tokens.ListAuditEvents, request, stubs.admin).audit_events
    assert MessageToDict(event.after) == {
        "state": "revoked",
        "reason": "leaked",
        "filter": {"labels": {"team": "data"}, "permission_set": "member"},
    }
