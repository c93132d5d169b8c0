"""CreateOperator, ListOperators and RevokeOperator over the wire: a revoked credential passes nowhere from the return on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.core.secret import SecretKind, find_secret, generate, new_id
from doorward.v1 import system_admin_pb2 as pb
from doorward.v1 import types_pb2
from doorward.v1.account_admin_pb2 import GetAccountRequest, ListAccountsRequest
from doorward.v1.authorizer_pb2 import BatchCheckItem, BatchCheckRequest, CheckRequest
from tests.support.server import bearer, start_server, stubs_on
from tests.support.wire import OwnAccount, ask, code_of, eventually, fresh_id, on_all, refused

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.rows import Rows
    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import Metadata

ADMIN, AUDITOR, CALLER = types_pb2.OPERATOR_ROLE_ADMIN, types_pb2.OPERATOR_ROLE_AUDITOR, types_pb2.OPERATOR_ROLE_CALLER


def create(
    stubs: Stubs, role: types_pb2.OperatorRole.ValueType = CALLER, name: str = "an operator", **fields: Any
) -> pb.CreateOperatorResponse:
    request = pb.CreateOperatorRequest(role=role, display_name=name, **fields)
    return ask(stubs.system.CreateOperator, request, stubs.admin)


def revoke(
    stubs: Stubs, operator_id: str, metadata: Metadata | None = None, **fields: Any
) -> pb.RevokeOperatorResponse:
    request = pb.RevokeOperatorRequest(operator_id=operator_id, **fields)
    return ask(stubs.system.RevokeOperator, request, stubs.admin if metadata is None else metadata)


def listed(stubs: Stubs, **fields: Any) -> list[pb.Operator]:
    """Every page of a list."""
    found: list[pb.Operator] = []
    request = pb.ListOperatorsRequest(page_size=1000, **fields)
    while True:
        page = ask(stubs.system.ListOperators, request, stubs.admin)
        found += page.operators
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


def checked(account: OwnAccount, secret: str, metadata: Metadata) -> str:
    """The status of a check by this caller."""
    request = CheckRequest(secret=secret, permission="jobs:read", project_id=account.project_ids[0])
    return code_of(lambda: ask(account.stubs.authorizer.Check, request, metadata))


# ---- creating


def test_a_new_operator_works_at_once_with_a_credential_that_is_shown_once(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    secret = account.issue(on_all("job_admin")).secret

    made = create(stubs, CALLER, "discovery api")

    found = find_secret(made.secret, SecretKind.OPERATOR)
    assert found is not None
    assert (found.subject_id, len(made.secret)) == (made.operator.operator_id, 60)
    assert (made.operator.role, made.operator.display_name) == (CALLER, "discovery api")
    assert made.propagation.replicas_confirmed == 1
    assert checked(account, secret, bearer(made.secret)) == "OK"
    assert made.secret not in rows.dump()
    assert [operator for operator in listed(stubs) if operator.operator_id == made.operator.operator_id] == [
        made.operator
    ]


@pytest.mark.parametrize(
    ("role", "may_read", "may_change"), [(ADMIN, True, True), (AUDITOR, True, False), (CALLER, False, False)]
)
def test_each_role_may_do_its_part(
    stubs: Stubs, role: types_pb2.OperatorRole.ValueType, may_read: bool, may_change: bool
) -> None:
    credential = bearer(create(stubs, role).secret)

    read = code_of(lambda: ask(stubs.accounts.ListAccounts, ListAccountsRequest(), credential))
    changed = code_of(
        lambda: ask(
            stubs.system.CreateOperator, pb.CreateOperatorRequest(role=CALLER, display_name="second"), credential
        )
    )

    assert (read == "OK", changed == "OK") == (may_read, may_change)


def test_a_credential_stops_at_its_expiry_by_itself(stubs: Stubs, account: OwnAccount) -> None:
    secret = account.issue(on_all("job_admin")).secret
    made = create(stubs, CALLER, ttl=Duration(seconds=1))
    credential = bearer(made.secret)

    assert checked(account, secret, credential) in {"OK", "UNAUTHENTICATED"}
    eventually(lambda: checked(account, secret, credential) == "UNAUTHENTICATED")

    span = made.operator.expire_time.ToNanoseconds() - made.operator.create_time.ToNanoseconds()
    assert span == 1_000_000_000
    # A replica takes the latest time that the database's clock can show; that clock itself comes later.
    eventually(lambda: made.operator not in listed(stubs))
    assert made.operator in listed(stubs, include_inactive=True)


def test_every_bad_field_is_told_at_once(stubs: Stubs, rows: Rows) -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    before = rows.footprint()
    past = Timestamp(seconds=1)

    def bad(**fields: Any) -> list[tuple[str, str]]:
        return refused(stubs.system.CreateOperator, pb.CreateOperatorRequest(**fields), stubs.admin).bad_fields

    assert bad() == [("display_name", "FIELD_REQUIRED"), ("role", "FIELD_REQUIRED")]
    assert bad(display_name="x" * 201, expire_time=past) == [
        ("display_name", "FIELD_TOO_LONG"),
        ("expire_time", "FIELD_OUT_OF_RANGE"),
        ("role", "FIELD_REQUIRED"),
    ]
    assert bad(display_name=secret, role=99, ttl=Duration(seconds=-1)) == [
        ("display_name", "FIELD_CONTAINS_SECRET"),
        ("role", "FIELD_OUT_OF_RANGE"),
        ("ttl", "FIELD_OUT_OF_RANGE"),
    ]
    assert bad(display_name="x", role=CALLER, expire_time=past) == [("expire_time", "FIELD_OUT_OF_RANGE")]
    assert bad(display_name="x", role=CALLER, expire_time=past, validate_only=True) == [
        ("expire_time", "FIELD_OUT_OF_RANGE")
    ]
    assert rows.footprint() == before


def test_an_operator_that_is_only_validated_is_shown_and_not_created(stubs: Stubs, rows: Rows) -> None:
    before = rows.footprint()

    answer = create(stubs, AUDITOR, "only checked", ttl=Duration(seconds=60), validate_only=True)

    assert (answer.secret, answer.operator.operator_id, answer.HasField("propagation")) == ("", "", False)
    assert (answer.operator.role, answer.operator.display_name) == (AUDITOR, "only checked")
    assert answer.operator.HasField("expire_time")
    assert rows.footprint() == before


def test_a_repeat_creates_another_operator(stubs: Stubs) -> None:
    first, second = create(stubs, CALLER, "twice"), create(stubs, CALLER, "twice")

    assert first.operator.operator_id != second.operator.operator_id
    assert first.secret != second.secret


# ---- listing


def test_operators_are_listed_newest_first_by_role_in_pages(stubs: Stubs) -> None:
    made = [create(stubs, role).operator for role in (AUDITOR, CALLER, AUDITOR, AUDITOR)]
    revoke(stubs, made[0].operator_id)
    wanted = pb.ListOperatorsRequest(role=AUDITOR, include_inactive=True, page_size=1)
    found: list[pb.Operator] = []
    while len(found) < 3:
        page = ask(stubs.system.ListOperators, wanted, stubs.admin)
        found += page.operators
        wanted.page_token = page.next_page_token

    assert [operator.operator_id for operator in found] == [
        made[3].operator_id,
        made[2].operator_id,
        made[0].operator_id,
    ]
    assert found[2].HasField("revoke_time")
    active = [operator.operator_id for operator in listed(stubs, role=AUDITOR)]
    assert active[:2] == [made[3].operator_id, made[2].operator_id]
    assert made[0].operator_id not in active
    newest = [operator.operator_id for operator in listed(stubs)][:3]
    assert newest == [made[3].operator_id, made[2].operator_id, made[1].operator_id]


def test_a_page_token_of_other_filters_or_made_up_is_refused(stubs: Stubs) -> None:
    for _ in range(2):
        create(stubs)
    rpc = stubs.system.ListOperators
    token = ask(rpc, pb.ListOperatorsRequest(page_size=1), stubs.admin).next_page_token

    other = refused(rpc, pb.ListOperatorsRequest(page_token=token, role=CALLER), stubs.admin)
    made_up = refused(rpc, pb.ListOperatorsRequest(page_token="bm90aGluZw"), stubs.admin)
    bad = refused(rpc, pb.ListOperatorsRequest(page_size=-1, role=99), stubs.admin)  # type: ignore[arg-type]

    assert {other.reason, made_up.reason} == {"PAGE_TOKEN_INVALID"}
    assert bad.bad_fields == [("page_size", "FIELD_OUT_OF_RANGE"), ("role", "FIELD_OUT_OF_RANGE")]


# ---- revoking


def test_a_revoked_operator_passes_nowhere_from_the_return_on_though_it_was_recognized_a_moment_ago(
    stubs: Stubs, account: OwnAccount
) -> None:
    """Whatever remembers callers, the warm path's pairs too, forgets this one."""
    secret = account.issue(on_all("job_admin")).secret
    item = BatchCheckItem(permission="jobs:read", project_id=account.project_ids[0])
    batch = BatchCheckRequest(secret=secret, items=[item] * 3)
    for _ in range(3):
        made = create(stubs, ADMIN)
        credential = bearer(made.secret)
        warm = {checked(account, secret, credential) for _ in range(5)}
        warm.add(code_of(lambda: ask(stubs.authorizer.BatchCheck, batch, credential)))  # noqa: B023
        warm.add(code_of(lambda: ask(stubs.accounts.ListAccounts, ListAccountsRequest(), credential)))  # noqa: B023

        answer = revoke(stubs, made.operator.operator_id, reason="left the team")

        request = CheckRequest(secret=secret, permission="jobs:read", project_id=account.project_ids[0])
        refusals = [
            refused(stubs.authorizer.Check, request, credential),
            refused(stubs.authorizer.Check, request, credential),
            refused(stubs.authorizer.BatchCheck, batch, credential),
            refused(stubs.accounts.ListAccounts, ListAccountsRequest(), credential),
            refused(stubs.system.CreateOperator, pb.CreateOperatorRequest(), credential),
        ]
        assert warm == {"OK"}
        assert answer.operator.HasField("revoke_time")
        assert {(refusal.code, refusal.reason) for refusal in refusals} == {
            ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")
        }
    assert checked(account, secret, stubs.caller) == "OK"


def test_no_check_that_begins_after_the_return_passes_while_others_go_on(stubs: Stubs, account: OwnAccount) -> None:
    """Many callers of the one credential at once, of which none is let in any more once it was revoked."""
    secret = account.issue(on_all("job_admin")).secret
    made = create(stubs)
    credential = bearer(made.secret)
    revoked = threading.Event()
    late: list[str] = []
    codes: set[str] = set()

    def keep_asking() -> None:
        for _ in range(400):
            begun_after = revoked.is_set()
            code = checked(account, secret, credential)
            codes.add(code)
            if begun_after:
                late.append(code)
                if len(late) > 20:
                    return

    callers = [threading.Thread(target=keep_asking) for _ in range(4)]
    for caller in callers:
        caller.start()
    eventually(lambda: "OK" in codes)
    revoke(stubs, made.operator.operator_id)
    revoked.set()
    for caller in callers:
        caller.join()

    assert codes == {"OK", "UNAUTHENTICATED"}
    assert set(late) == {"UNAUTHENTICATED"}


def test_a_repeat_changes_nothing_and_waits_again(stubs: Stubs, rows: Rows) -> None:
    made = create(stubs)
    first = revoke(stubs, made.operator.operator_id, reason="first")
    again = revoke(stubs, made.operator.operator_id, reason="second")

    assert again.operator == first.operator
    assert again.HasField("propagation")
    told = rows.fetch(
        "SELECT before ->> 'state', after ->> 'state', after ->> 'reason' FROM audit_events"
        " WHERE subject = $1 AND action = 'RevokeOperator' ORDER BY event_id",
        f"operator:{made.operator.operator_id}",
    )
    assert told == [("live", "revoked", "first"), (None, None, None)]


def test_an_operator_may_revoke_itself(stubs: Stubs) -> None:
    made = create(stubs, ADMIN)
    credential = bearer(made.secret)

    answer = revoke(stubs, made.operator.operator_id, credential)
    again = pb.RevokeOperatorRequest(operator_id=made.operator.operator_id)

    assert answer.operator.HasField("revoke_time")
    assert answer.HasField("propagation")
    assert refused(stubs.system.RevokeOperator, again, credential).code == "UNAUTHENTICATED"


def test_of_two_admins_who_revoke_each_other_one_comes_first_and_the_other_is_nobody_then(stubs: Stubs) -> None:
    for _ in range(5):
        pair = [create(stubs, ADMIN) for _ in range(2)]
        codes: list[str] = []

        def strike(
            mine: pb.CreateOperatorResponse, theirs: pb.CreateOperatorResponse, codes: list[str] = codes
        ) -> None:
            credential, target = bearer(mine.secret), theirs.operator.operator_id
            codes.append(code_of(lambda: revoke(stubs, target, credential)))

        duel = [threading.Thread(target=strike, args=sides) for sides in (pair, pair[::-1])]
        for thread in duel:
            thread.start()
        for thread in duel:
            thread.join()

        assert sorted(codes) == ["OK", "UNAUTHENTICATED"]
        active = {operator.operator_id for operator in listed(stubs)}
        assert len(active & {one.operator.operator_id for one in pair}) == 1


def test_what_an_operator_did_stays(stubs: Stubs, account: OwnAccount) -> None:
    made = create(stubs, ADMIN)
    issued = ask(stubs.tokens.IssueToken, account.wanted(on_all("job_admin")), bearer(made.secret))

    revoke(stubs, made.operator.operator_id)

    assert account.token(issued.token.token_id) == issued.token
    assert issued.token.created_by == f"operator:{made.operator.operator_id}"
    assert checked(account, issued.secret, stubs.caller) == "OK"


def test_a_revocation_that_is_only_validated_shows_the_operator_as_it_is(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    secret = account.issue(on_all("job_admin")).secret
    made = create(stubs)
    before = rows.footprint()

    answer = revoke(stubs, made.operator.operator_id, validate_only=True)

    assert (answer.operator, answer.HasField("propagation")) == (made.operator, False)
    assert rows.footprint() == before
    assert checked(account, secret, bearer(made.secret)) == "OK"


def test_unknown_operators_and_bad_fields_are_refused(stubs: Stubs, rows: Rows) -> None:
    nobody, rpc = fresh_id("nobody"), stubs.system.RevokeOperator
    secret = generate(SecretKind.OPERATOR, new_id()).reveal()
    before = rows.footprint()

    unknown = [
        refused(rpc, pb.RevokeOperatorRequest(operator_id=nobody, validate_only=only), stubs.admin)
        for only in (False, True)
    ]
    bad = refused(rpc, pb.RevokeOperatorRequest(operator_id=secret, reason="x" * 501), stubs.admin)

    assert unknown[0] == unknown[1]
    assert (unknown[0].code, unknown[0].reason) == ("NOT_FOUND", "OPERATOR_NOT_FOUND")
    assert unknown[0].metadata == {"operator_id": nobody}
    assert bad.bad_fields == [("operator_id", "FIELD_CONTAINS_SECRET"), ("reason", "FIELD_TOO_LONG")]
    assert secret not in bad.text
    assert rows.footprint() == before


def test_the_last_admin_may_go_and_a_restart_finds_it_gone(tmp_path: Path) -> None:
    """Also without any cache: the credential's file is there, and proves nobody."""
    running: ServerProcess = start_server(tmp_path / "data", tmp_path / "scratch")
    with grpc.insecure_channel(running.address) as channel:
        stubs = stubs_on(channel, running)
        admins = listed(stubs, role=ADMIN)
        for admin in admins:
            revoke(stubs, admin.operator_id)
        unable = refused(stubs.accounts.GetAccount, GetAccountRequest(account_id="acme"), stubs.admin)
    assert running.stop() == 0
    again = start_server(tmp_path / "data", tmp_path / "scratch")
    with grpc.insecure_channel(again.address) as channel:
        stubs = stubs_on(channel, again)
        still_unable = refused(stubs.accounts.GetAccount, GetAccountRequest(account_id="acme"), stubs.admin)
    assert again.stop() == 0

    assert len(admins) == 1
    assert {unable.code, still_unable.code} == {"UNAUTHENTICATED"}
