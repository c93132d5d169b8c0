"""What is refused is on record: which calls, as whose, and without a secret. On a server of its own, for the rate is limited."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import account_admin_pb2, authorizer_pb2
from doorward.v1 import token_admin_pb2 as pb
from doorward_server.api.access import TABLE
from tests.support.rows import Rows
from tests.support.server import bearer, start_server, stubs_on
from tests.support.wire import OwnAccount, an_account, another_of, ask, eventually, every_rpc, fresh_id, on_all, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import Metadata

CHANGE, REFUSAL = pb.AUDIT_EVENT_KIND_CHANGE, pb.AUDIT_EVENT_KIND_REFUSAL


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    base = tmp_path_factory.mktemp("refusals")
    running = start_server(base / "data", base / "scratch")
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture(scope="module")
def stubs(own_server: ServerProcess) -> Iterator[Stubs]:
    with grpc.insecure_channel(own_server.address) as channel:
        yield stubs_on(channel, own_server)


@pytest.fixture
def account(stubs: Stubs) -> OwnAccount:
    return an_account(stubs)


def listed(stubs: Stubs, caller: Metadata | None = None, **fields: Any) -> list[pb.AuditEvent]:
    """The newest of them."""
    request = pb.ListAuditEventsRequest(page_size=1000, **fields)
    return list(ask(stubs.tokens.ListAuditEvents, request, caller or stubs.admin).audit_events)


def refusals_of(
    stubs: Stubs, is_it: Callable[[pb.AuditEvent], bool], caller: Metadata | None = None, **fields: Any
) -> list[pb.AuditEvent]:
    """Those that are wanted, once there are any: they are written in the background."""
    found: list[pb.AuditEvent] = []

    def are_there() -> bool:
        found[:] = [event for event in listed(stubs, caller, kind=REFUSAL, **fields) if is_it(event)]
        return bool(found)

    eventually(are_there)
    return found


@pytest.fixture
def reader(account: OwnAccount) -> Metadata:
    """A service token of the account that may do everything in it."""
    return bearer(account.issue(on_all("account_admin")).secret)


def test_a_refused_change_is_on_record_with_its_reason(stubs: Stubs, account: OwnAccount) -> None:
    token_id = fresh_id("t")
    refused(stubs.tokens.RevokeToken, pb.RevokeTokenRequest(token_id=token_id), stubs.admin)
    (event,) = refusals_of(stubs, lambda event: event.subject == f"token:{token_id}")
    assert (event.kind, event.action, event.refusal_reason) == (REFUSAL, "RevokeToken", "TOKEN_NOT_FOUND")
    assert event.actor == listed(stubs, account_id=account.account_id)[0].actor
    assert (event.peer, event.revision, event.suppressed) == ("127.0.0.1", "", 0)
    assert event.event_id > 0
    assert event.event_time.seconds > 0
    assert listed(stubs, token_id=token_id) == []


def test_a_token_that_asks_for_too_much_is_on_record_in_its_own_account(
    stubs: Stubs, account: OwnAccount, reader: Metadata
) -> None:
    weak = account.issue(on_all("job_admin"))
    refused(stubs.tokens.IssueToken, account.wanted(on_all("job_admin")), bearer(weak.secret))
    actor = f"token:{weak.token.token_id}"
    (event,) = refusals_of(stubs, lambda event: True, reader, account_id=account.account_id, actor=actor)
    assert (event.action, event.refusal_reason) == ("IssueToken", "CALLER_NOT_PERMITTED")
    assert (event.subject, event.account_id) == (f"account:{account.account_id}", account.account_id)


def test_what_a_token_tries_on_another_account_is_its_own_accounts_record(
    stubs: Stubs, account: OwnAccount, reader: Metadata
) -> None:
    other = an_account(stubs)
    foreign = other.issue(on_all("job_admin")).token.token_id
    refused(stubs.tokens.RevokeToken, pb.RevokeTokenRequest(token_id=foreign), reader)
    (event,) = refusals_of(stubs, lambda event: event.subject == f"token:{foreign}")
    assert (event.account_id, event.refusal_reason) == (account.account_id, "TOKEN_NOT_FOUND")
    assert listed(stubs, account_id=other.account_id, kind=REFUSAL) == []


def test_a_credential_that_proves_nobody_is_on_record_as_anonymous(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("account_admin"))
    wrong = bearer(another_of(issued.secret))
    assert refused(stubs.tokens.GetToken, pb.GetTokenRequest(token_id="x"), wrong).code == "UNAUTHENTICATED"
    (event,) = refusals_of(stubs, lambda event: event.action == "GetToken", actor="anonymous")
    assert (event.refusal_reason, event.subject, event.account_id) == ("CREDENTIAL_UNRECOGNIZED", "token:x", "")
    # Whose id it was, it did not prove.
    assert issued.token.token_id not in str(event)


def test_a_revoked_tokens_own_secret_is_on_record_as_that_token(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("account_admin"))
    account.revoke(issued.token.token_id)
    request = pb.ListTokensRequest(account_id=account.account_id)
    assert refused(stubs.tokens.ListTokens, request, bearer(issued.secret)).reason == "CREDENTIAL_UNRECOGNIZED"
    actor = f"token:{issued.token.token_id}"
    (event,) = refusals_of(stubs, lambda event: True, actor=actor)
    assert (event.action, event.account_id) == ("ListTokens", account.account_id)
    assert event.refusal_reason == "CREDENTIAL_UNRECOGNIZED"


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_failed_credentials_of_checks_are_on_record_and_denied_checks_are_not(
    stubs: Stubs, account: OwnAccount, warm: bool
) -> None:
    issued = account.issue(on_all("account_admin"))
    request = authorizer_pb2.CheckRequest(
        secret=issued.secret, permission="jobs:write", project_id=account.project_ids[0]
    )
    if warm:
        ask(stubs.authorizer.Check, request, stubs.caller)
    # A service token may not ask, whatever it holds.
    for _ in range(2):
        assert refused(stubs.authorizer.Check, request, bearer(issued.secret)).code == "PERMISSION_DENIED"
    actor = f"token:{issued.token.token_id}"
    found = refusals_of(stubs, lambda event: True, actor=actor)
    assert {(event.action, event.refusal_reason, event.account_id) for event in found} == {
        ("Check", "CALLER_NOT_PERMITTED", account.account_id)
    }
    denied = authorizer_pb2.CheckRequest(
        secret=another_of(issued.secret), permission="jobs:write", project_id=account.project_ids[0]
    )
    assert not ask(stubs.authorizer.Check, denied, stubs.caller).allowed
    assert len(listed(stubs, kind=REFUSAL, actor=actor)) <= 2


def test_nothing_is_recorded_of_a_mistake_in_a_requests_form_nor_of_a_failed_read(stubs: Stubs) -> None:
    marker, missing = fresh_id("t"), fresh_id("t")
    bad = account_admin_pb2.PutAccountRequest(account_id=marker, display_name="", plan="team")
    assert refused(stubs.accounts.PutAccount, bad, stubs.admin).code == "INVALID_ARGUMENT"
    assert refused(stubs.tokens.GetToken, pb.GetTokenRequest(token_id=missing), stubs.admin).code == "NOT_FOUND"
    last = fresh_id("t")
    refused(stubs.tokens.RevokeToken, pb.RevokeTokenRequest(token_id=last), stubs.admin)
    refusals_of(stubs, lambda event: event.subject == f"token:{last}")
    subjects = {event.subject for event in listed(stubs, kind=REFUSAL)}
    assert not subjects & {f"account:{marker}", f"token:{missing}"}


def test_a_secret_in_the_place_of_an_id_does_not_get_into_the_record(stubs: Stubs, own_server: ServerProcess) -> None:
    planted = generate(SecretKind.TOKEN, new_id()).reveal()
    refused(stubs.tokens.RevokeToken, pb.RevokeTokenRequest(token_id=planted), stubs.admin)
    refused(stubs.tokens.RevokeToken, pb.RevokeTokenRequest(token_id=planted), stubs.caller)
    refused(stubs.tokens.RevokeToken, pb.RevokeTokenRequest(token_id="x"), bearer(planted))
    refused(stubs.tokens.RevokeToken, pb.RevokeTokenRequest(token_id=planted), bearer(planted))
    last = fresh_id("t")
    refused(stubs.tokens.RevokeToken, pb.RevokeTokenRequest(token_id=last), stubs.admin)
    refusals_of(stubs, lambda event: event.subject == f"token:{last}")
    with contextlib.closing(Rows(own_server.data_dir)) as rows:
        assert planted[-20:] not in rows.dump()


def test_every_change_of_the_contract_has_its_refusals_recorded() -> None:
    changing = {rpc.path for rpc in every_rpc() if "propagation" in rpc.response_type.DESCRIPTOR.fields_by_name}
    changing.discard("/doorward.v1.TokenAdmin/AwaitPropagation")
    assert {path for path, access in TABLE.items() if access.changes} == changing
