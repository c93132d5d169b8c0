"""Both dialects at a real server: one table of cases, each with what it must return or raise in either of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from doorward import errors
from doorward.core.secret import SecretKind, generate, new_id
from doorward.decisions import Ask, Decision, DenyReason
from doorward.records import on_projects
from doorward.v1 import authorizer_pb2, token_admin_pb2, types_pb2
from tests.support.held import Held
from tests.support.wire import OwnAccount, an_account, another_of, fresh_id, mistyped, on, on_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.dialects import Called, Dialect
    from tests.support.server import ServerProcess, Stubs


@dataclass
class World:
    """An account with a token on one of its two projects, and the four clients of one dialect."""

    account: OwnAccount
    token: types_pb2.ServiceToken
    secret: str
    authorizer: Called
    tokens: Called
    accounts: Called
    system: Called

    @property
    def project_id(self) -> str:
        return self.account.project_ids[0]

    @property
    def other_project_id(self) -> str:
        return self.account.project_ids[1]


@pytest.fixture(scope="module")
def issued(stubs: Stubs) -> tuple[OwnAccount, token_admin_pb2.IssueTokenResponse]:
    account = an_account(stubs)
    return account, account.issue(on("job_admin", account.project_ids[0]))


@pytest.fixture
def world(
    dialect: Dialect, server: ServerProcess, issued: tuple[OwnAccount, token_admin_pb2.IssueTokenResponse]
) -> World:
    account, answer = issued
    admin = server.operator_token_file
    return World(
        account,
        answer.token,
        answer.secret,
        dialect.client("Authorizer", server.address, credential=server.caller_token_file, timeout=30.0),
        dialect.client("TokenAdmin", server.address, credential=admin),
        dialect.client("AccountAdmin", server.address, credential=admin),
        dialect.client("SystemAdmin", server.address, credential=admin),
    )


# ---- decisions: what is asked, and what is answered

ALLOWED = None
DECISIONS: list[tuple[str, Callable[[World], Any], DenyReason | None]] = [
    (
        "allowed",
        lambda w: w.authorizer.check(w.secret, "jobs:write", project_id=w.project_id),
        ALLOWED,
    ),
    (
        "allowed, fully consistent",
        lambda w: w.authorizer.check(w.secret, "jobs:write", project_id=w.project_id, fully_consistent=True),
        ALLOWED,
    ),
    (
        "allowed, at least as fresh",
        lambda w: w.authorizer.check(w.secret, "jobs:read", project_id=w.project_id, at_least_as_fresh="1.1"),
        ALLOWED,
    ),
    (
        "another project",
        lambda w: w.authorizer.check(w.secret, "jobs:write", project_id=w.other_project_id),
        DenyReason.PROJECT_NOT_GRANTED,
    ),
    (
        "another account's project",
        lambda w: w.authorizer.check(w.secret, "jobs:write", project_id="nobody-has-it"),
        DenyReason.RESOURCE_NOT_IN_ACCOUNT,
    ),
    (
        "account-level",
        lambda w: w.authorizer.check(w.secret, "billing:read", account_id=w.account.account_id),
        DenyReason.PERMISSION_NOT_GRANTED,
    ),
    (
        "unknown secret",
        lambda w: w.authorizer.check(
            generate(SecretKind.TOKEN, new_id()).reveal(), "jobs:write", project_id=w.project_id
        ),
        DenyReason.TOKEN_UNRECOGNIZED,
    ),
    (
        "mistyped secret",
        lambda w: w.authorizer.check(mistyped(w.secret), "jobs:write", project_id=w.project_id),
        DenyReason.TOKEN_UNRECOGNIZED,
    ),
    (
        "wrong secret of a known token",
        lambda w: w.authorizer.check(another_of(w.secret), "jobs:write", project_id=w.project_id),
        DenyReason.TOKEN_UNRECOGNIZED,
    ),
    (
        "no secret at all",
        lambda w: w.authorizer.check("nonsense", "jobs:write", project_id=w.project_id),
        DenyReason.TOKEN_UNRECOGNIZED,
    ),
]


@pytest.mark.parametrize(("ask", "reason"), [row[1:] for row in DECISIONS], ids=[row[0] for row in DECISIONS])
def test_a_check_is_decided(world: World, ask: Callable[[World], Decision], reason: DenyReason | None) -> None:
    decision = ask(world)
    assert (bool(decision), decision.reason) == (reason is None, reason)
    is_recognized = reason is not DenyReason.TOKEN_UNRECOGNIZED
    assert decision.token_id == (world.token.token_id if is_recognized else "")
    assert decision.account_id == (world.account.account_id if is_recognized else "")
    assert decision.revision.startswith("1.")


# ---- errors: what is called, and what it ends with

FAILURES: list[tuple[str, Callable[[World], Any], type[errors.DoorwardError], str, list[tuple[str, str]]]] = [
    (
        "permission that the catalog does not have",
        lambda w: w.authorizer.check(w.secret, "jobs:delete", project_id=w.project_id),
        errors.InvalidRequest,
        "INVALID_FIELDS",
        [("permission", "PERMISSION_UNKNOWN")],
    ),
    (
        "resource of the wrong kind, and no secret",
        lambda w: w.authorizer.check("", "billing:read", project_id=w.project_id),
        errors.InvalidRequest,
        "INVALID_FIELDS",
        [("project_id", "PERMISSION_LEVEL_MISMATCH"), ("secret", "FIELD_REQUIRED")],
    ),
    (
        "resource that is empty",
        lambda w: w.authorizer.check(w.secret, "jobs:read", project_id=""),
        errors.InvalidRequest,
        "INVALID_FIELDS",
        [("project_id", "FIELD_REQUIRED")],
    ),
    (
        "revision that nobody has reached",
        lambda w: w.authorizer.check(w.secret, "jobs:read", project_id=w.project_id, at_least_as_fresh="1.999999999"),
        errors.PreconditionFailed,
        "REVISION_BEYOND_END",
        [],
    ),
    (
        "token that nobody issued",
        lambda w: w.tokens.get_token("0123456789abcdef"),
        errors.NotFound,
        "TOKEN_NOT_FOUND",
        [],
    ),
    (
        "account that nobody put",
        lambda w: w.accounts.get_account("nobody-has-it"),
        errors.NotFound,
        "ACCOUNT_NOT_FOUND",
        [],
    ),
    (
        "no grants",
        lambda w: w.tokens.issue_token(w.account.account_id, display_name="x", grants=[]),
        errors.InvalidRequest,
        "INVALID_FIELDS",
        [("grants", "FIELD_REQUIRED")],
    ),
    (
        "page token of nobody",
        lambda w: w.accounts.list_accounts(page_token="x"),
        errors.InvalidRequest,
        "PAGE_TOKEN_INVALID",
        [("page_token", "PAGE_TOKEN_INVALID")],
    ),
]


@pytest.mark.parametrize(
    ("call", "expected", "reason", "fields"), [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES]
)
def test_a_failed_call_is_raised_as_what_it_is(
    world: World,
    call: Callable[[World], Any],
    expected: type[errors.DoorwardError],
    reason: str,
    fields: list[tuple[str, str]],
) -> None:
    with pytest.raises(expected) as caught:
        call(world)
    assert caught.value.reason == reason
    assert sorted((one.field, one.reason) for one in caught.value.violations) == fields
    assert world.secret not in f"{caught.value}{caught.value!r}"
    assert caught.value.__cause__ is None


def test_a_batch_is_decided_item_by_item(world: World) -> None:
    asks = [
        Ask("jobs:write", project_id=world.project_id),
        Ask("jobs:write", project_id=world.other_project_id),
        Ask("nothing:read", project_id=world.project_id),
        Ask("jobs:write", project_id=world.project_id, secret=mistyped(world.secret)),
    ]
    allowed, denied, wrong, unrecognized = world.authorizer.check_many(world.secret, asks)
    assert allowed
    assert denied.reason is DenyReason.PROJECT_NOT_GRANTED
    assert isinstance(wrong.error, errors.InvalidRequest)
    assert unrecognized.reason is DenyReason.TOKEN_UNRECOGNIZED


def test_a_batch_fails_whole_for_what_concerns_all_of_it(world: World) -> None:
    asks = [Ask("jobs:write", project_id=world.project_id)]
    with pytest.raises(errors.PreconditionFailed):
        world.authorizer.check_many(world.secret, asks, at_least_as_fresh="7.1")


def test_what_a_token_is_and_may_do(world: World) -> None:
    assert "jobs:write" in world.authorizer.list_permissions(world.secret, project_id=world.project_id).permissions
    assert world.authorizer.introspect_token(world.secret).token_id == world.token.token_id


def test_a_tokens_life(world: World) -> None:
    issued = world.tokens.issue_token(
        world.account.account_id,
        display_name="of a client",
        grants=[on_projects("job_admin", world.project_id)],
        labels={"team": "data"},
        expire_time=datetime.now(UTC) + timedelta(days=1),
    )
    secret = issued.secret.reveal()
    assert world.authorizer.check(secret, "jobs:write", project_id=world.project_id)
    listed = world.tokens.list_tokens(world.account.account_id, display_name_prefix="of a client", page_size=1)
    assert world.tokens.get_token(issued.token.token_id).token == listed.tokens[0]
    revoked = world.tokens.revoke_token(issued.token.token_id, reason="done")
    assert revoked.propagation.replicas_confirmed >= 1
    decision = world.authorizer.check(secret, "jobs:write", project_id=world.project_id)
    assert decision.reason is DenyReason.TOKEN_REVOKED
    assert world.tokens.await_propagation(revoked.propagation.revision).propagation.revision
    assert secret not in repr(issued)


def test_a_request_id_of_ones_own_makes_one_token_of_two_calls(world: World) -> None:
    given = {"display_name": "twice", "grants": [on_all("metadata_only")], "request_id": str(uuid.uuid4())}
    first, second = (world.tokens.issue_token(world.account.account_id, **given) for _ in range(2))
    assert first.token.token_id == second.token.token_id
    assert first.secret == second.secret


def test_accounts_and_projects(world: World) -> None:
    account_id = fresh_id("acc")
    put = world.accounts.put_account(account_id, display_name="Of a client", plan="team")
    assert put.account.plan == "team"
    world.accounts.put_project(account_id, f"{account_id}-p", display_name="P")
    assert [one.project_id for one in world.accounts.list_projects(account_id).projects] == [f"{account_id}-p"]


def test_the_system(world: World) -> None:
    assert world.system.get_catalog().catalog_version >= 1
    assert len(world.system.list_replicas().replicas) >= 1


def test_any_message_can_be_sent_by_the_stub(dialect: Dialect, world: World) -> None:
    ask = authorizer_pb2.ListPermissionsRequest(secret=world.secret)
    stub = dialect.run(lambda: world.authorizer.client.stub)
    assert world.authorizer.call(stub.ListPermissions, ask).token_id == world.token.token_id
    stub = dialect.run(lambda: world.tokens.client.stub)
    with pytest.raises(errors.NotFound):
        world.tokens.call(stub.GetToken, token_admin_pb2.GetTokenRequest(token_id="0" * 16))


def test_the_caller_that_may_not_is_told_so(dialect: Dialect, server: ServerProcess) -> None:
    tokens = dialect.client("TokenAdmin", server.address, credential=server.caller_credential)
    with pytest.raises(errors.NotPermitted) as caught:
        tokens.get_token("0123456789abcdef")
    assert caught.value.metadata["method"].endswith("/GetToken")


def test_without_a_credential_nobody_calls(dialect: Dialect, server: ServerProcess) -> None:
    with pytest.raises(errors.Unauthenticated) as caught:
        dialect.client("Authorizer", server.address).check("s", "jobs:read", project_id="p")
    assert caught.value.reason == "CREDENTIAL_MISSING"


def test_a_leak_is_reported_without_a_credential(dialect: Dialect, server: ServerProcess, world: World) -> None:
    reporter = dialect.client("TokenAdmin", server.address)
    try:
        assert reporter.report_leaked_token(mistyped(world.secret)) is None
    except errors.NotOffered as error:
        assert error.reason == "NOT_IMPLEMENTED"  # noqa: PT017 - of a server that does not do it yet


def test_a_credential_is_rotated_without_a_restart(
    dialect: Dialect, server: ServerProcess, world: World, tmp_path: Path
) -> None:
    """What was refused is looked for anew at the next call: here the file held a stranger's first."""
    file = tmp_path / "caller.token"
    file.write_text(generate(SecretKind.OPERATOR, new_id()).reveal())
    authorizer = dialect.client("Authorizer", server.address, credential=file)
    with pytest.raises(errors.Unauthenticated):
        authorizer.check(world.secret, "jobs:read", project_id=world.project_id)
    file.write_text(server.caller_credential)
    assert authorizer.check(world.secret, "jobs:read", project_id=world.project_id)


def test_who_an_operator_acts_for_is_sent(dialect: Dialect, held: Held) -> None:
    credential = held.a_credential()
    tokens = dialect.client("TokenAdmin", held.address, credential=credential)
    theirs = tokens.client.on_behalf_of("alice@example.com")
    for client, expected in ((theirs, "alice@example.com"), (tokens.client, None)):
        dialect.start(client.get_token, "t").result(30)
        call = held.next()
        assert call.metadata.get("on-behalf-of") == expected
        assert call.metadata["authorization"] == f"Bearer {credential}"


# What a deadline may seem to be longer at the other end, where it is counted from the arrival.
TRAVEL_S = 0.5


def test_every_call_has_a_deadline_and_its_own_if_it_names_one(dialect: Dialect, held: Held) -> None:
    tokens = dialect.client("TokenAdmin", held.address)
    for timeout, most in ((None, 30.0), (7.0, 7.0)):
        tokens.get_token("t", timeout=timeout)
        assert held.next().seconds_left < most + TRAVEL_S
    authorizer = dialect.client("Authorizer", held.address)
    authorizer.check("s", "yes:read", project_id="p")
    authorizer.check_many("s", [Ask("yes:read", project_id="p")])
    assert held.next().seconds_left < 2.0 + TRAVEL_S
    assert held.next().seconds_left < 2.0 + TRAVEL_S


def test_a_deadline_that_is_over_is_an_error_of_its_own(dialect: Dialect, held: Held) -> None:
    authorizer = dialect.client("Authorizer", held.address)
    held.hold()
    with pytest.raises(errors.DeadlineExceeded):
        authorizer.check("s", "yes:read", project_id="p", timeout=0.05)
    with pytest.raises(errors.DeadlineExceeded, match="nothing was sent"):
        authorizer.check("s", "yes:read", project_id="p", timeout=0)


def test_what_is_unavailable_is_tried_again_by_grpc(dialect: Dialect, held: Held) -> None:
    authorizer = dialect.client("Authorizer", held.address, timeout=20.0)
    held.failures += [(grpc.StatusCode.UNAVAILABLE, "not now")] * 4
    assert authorizer.check("s", "yes:read", project_id="p")
    assert len(held.so_far()) == 5


def test_nothing_else_is_tried_again(dialect: Dialect, held: Held) -> None:
    authorizer = dialect.client("Authorizer", held.address, timeout=20.0)
    held.failures += [(grpc.StatusCode.RESOURCE_EXHAUSTED, "not now")]
    with pytest.raises(errors.Exhausted):
        authorizer.check("s", "yes:read", project_id="p")
    assert len(held.so_far()) == 1


def test_a_token_is_issued_again_under_the_same_request_id(dialect: Dialect, held: Held) -> None:
    tokens = dialect.client("TokenAdmin", held.address)
    held.failures += [(grpc.StatusCode.UNAVAILABLE, "who knows")] * 2
    tokens.issue_token("acme", display_name="n", grants=[])
    attempts = [call.request.request_id for call in held.so_far()]
    assert len(attempts) == 3
    assert len(set(attempts)) == 1
    assert attempts[0]


def test_an_operator_is_not_created_twice(dialect: Dialect, held: Held) -> None:
    system = dialect.client("SystemAdmin", held.address)
    held.failures += [(grpc.StatusCode.UNAVAILABLE, "who knows")]
    with pytest.raises(errors.Unavailable):
        system.create_operator(types_pb2.OPERATOR_ROLE_CALLER, display_name="n")
    assert len(held.so_far()) == 1


def test_where_nobody_listens_it_is_unavailable(dialect: Dialect, tmp_path: Path) -> None:
    authorizer = dialect.client("Authorizer", f"unix:{tmp_path}/nobody.sock", timeout=20.0)
    with pytest.raises(errors.Unavailable):
        authorizer.check("s", "yes:read", project_id="p")


def test_a_unix_socket_is_an_address_too(dialect: Dialect, tmp_path: Path) -> None:
    with contextlib.closing(Held(f"unix:{tmp_path}/held.sock")) as held:
        assert dialect.client("Authorizer", held.address, timeout=20.0).check("s", "yes:read", project_id="p")


def test_a_closed_client_says_so_and_closing_twice_is_nothing(dialect: Dialect, held: Held) -> None:
    tokens = dialect.client("TokenAdmin", held.address)
    tokens.get_token("t")
    tokens.close()
    tokens.close()
    with pytest.raises(errors.ClientClosed):
        tokens.get_token("t")


def test_closing_ends_a_call_that_is_under_way(dialect: Dialect, held: Held) -> None:
    tokens = dialect.client("TokenAdmin", held.address)
    held.hold()
    begun = tokens.begin("get_token", "t")
    held.next()
    tokens.close()
    assert isinstance(begun.error(), errors.ClientClosed)


def test_a_client_is_a_context(dialect: Dialect, held: Held) -> None:
    client = dialect.client("TokenAdmin", held.address).client
    if dialect.is_aio:

        async def use() -> None:
            async with client as entered:
                await entered.get_token("t")

        dialect.start(use).result(30)
    else:
        with client as entered:
            entered.get_token("t")
    with pytest.raises(errors.ClientClosed):
        dialect.start(client.get_token, "t").result(30)


def test_a_channel_of_ones_own_stays_open(dialect: Dialect, held: Held) -> None:
    make: Any = grpc.aio.insecure_channel if dialect.is_aio else grpc.insecure_channel
    channel = dialect.run(lambda: make(held.address))
    for _ in range(2):
        client = dialect.client("TokenAdmin", channel)
        client.get_token("t")
        client.close()
        with pytest.raises(errors.ClientClosed):
            client.get_token("t")
    if dialect.is_aio:
        dialect.start(channel.close).result(30)
    else:
        channel.close()


def test_a_channel_of_ones_own_has_its_own_options(dialect: Dialect, held: Held) -> None:
    make: Any = grpc.aio.insecure_channel if dialect.is_aio else grpc.insecure_channel
    channel = dialect.run(lambda: make(held.address))
    with pytest.raises(ValueError, match="keepalive"):
        dialect.client("TokenAdmin", channel, keepalive=None)


def test_nothing_is_connected_before_the_first_call(dialect: Dialect) -> None:
    dialect.client("Authorizer", "127.0.0.1:1", credential=generate(SecretKind.OPERATOR, new_id()).reveal())


def test_no_client_shows_its_credential(dialect: Dialect, held: Held) -> None:
    credential = held.a_credential()
    client = dialect.client("TokenAdmin", held.address, credential=credential)
    client.get_token("t")
    assert credential not in f"{client.client!r}{vars(client.client)!r}"


FORKS = """
import os, sys
from doorward.threads import TokenAdminClient
used, unused = (TokenAdminClient(sys.argv[1]) for _ in range(2))
used.get_token("t")
pid = os.fork()
if not pid:
    try:
        used.get_token("t")
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
used.get_token("t")
"""


def test_after_a_fork_a_client_that_was_used_refuses_instead_of_hanging(held: Held) -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", FORKS, held.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "a client of its own" in done.stdout, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("dialect_name", ["aio", "threads"])
def test_importing_a_dialect_brings_nothing_of_a_server(dialect_name: str) -> None:
    script = f"import sys, doorward.{dialect_name}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    brought = {name for name in done.stdout.split() if not name.startswith("_")} - set(sys.stdlib_module_names)
    # grpc looks for its companions by itself; an editable installation's finder begins with an underscore.
    companions = {"grpc_health", "grpc_reflection", "grpc_tools", "cython_runtime"}
    assert brought - companions == {"doorward", "google", "grpc"}
