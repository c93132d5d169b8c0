"""Every ErrorReason that this version can give, given: with the code and the metadata that the contract documents for it.

Most need a server in trouble: one of its own, with a short hold, whose database is locked, tripped and altered by SQL.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
from google.rpc import status_pb2

from doorward.core.revision import Revision
from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1.account_admin_pb2 import GetAccountRequest, ListAccountsRequest, PutAccountRequest, PutProjectRequest
from doorward.v1.authorizer_pb2 import CheckRequest
from doorward.v1.error_reason_pb2 import ErrorReason
from doorward.v1.token_admin_pb2 import AwaitPropagationRequest, GetTokenRequest, RevokeTokenRequest, UpdateTokenRequest
from doorward.v1.types_pb2 import Consistency, Grant
from doorward_server.api.errors import status_of
from doorward_server.errors import Unavailable
from doorward_server.replica.tasks import Tasks
from tests.support.server import bearer, start_server, stubs_on
from tests.support.wire import (
    OwnAccount,
    Refusal,
    Rows,
    an_account,
    another_of,
    ask,
    check,
    eventually,
    fresh_id,
    on,
    on_all,
    raw,
    refusal_in,
    refusal_of,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.support.server import ServerProcess, Stubs

ROOT: Final = Path(__file__).parents[2]
CONTRACT: Final = (ROOT / "protos/doorward/v1/error_reason.proto").read_text(encoding="utf-8")
# Reasons of RPCs and fields that later versions bring.
LATER: Final = {
    "REQUEST_ID_REUSED",
    "EXCEEDS_CALLER",
    "PROJECT_NOT_FOUND",
    "OPERATOR_NOT_FOUND",
    "TOKEN_IS_REVOKED",
    "TOKEN_IS_EXPIRED",
    "CATALOG_IN_USE",
    "ETAG_MISMATCH",
    "CATALOG_VERSION_MISMATCH",
    "TOO_MANY_REQUESTS",
}
HOLD_S: Final = 2
TRIP: Final = """
CREATE FUNCTION trip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$;
"""


@dataclass(frozen=True)
class Frail:
    """A server that may be hurt."""

    server: ServerProcess
    stubs: Stubs
    rows: Rows
    account: OwnAccount

    def put_account(self, account_id: str = "") -> PutAccountRequest:
        return PutAccountRequest(account_id=account_id or fresh_id("acc"), display_name="An account", plan="team")

    def put_project(self) -> PutProjectRequest:
        account_id = self.account.account_id
        return PutProjectRequest(account_id=account_id, project_id=fresh_id("p"), display_name="A project")

    @contextlib.contextmanager
    def tripped(self, body: str, trigger: str) -> Iterator[None]:
        """Runs `body` whenever an account is written."""
        self.rows.fetch(TRIP.format(body))
        self.rows.fetch(
            f"CREATE {trigger} ON accounts {'DEFERRABLE INITIALLY DEFERRED ' * ('AFTER' in trigger)}"
            "FOR EACH ROW EXECUTE FUNCTION trip()"
        )
        try:
            yield
        finally:
            self.rows.fetch("DROP FUNCTION trip CASCADE")


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frail]:
    """One server for this module, with a bound of two live tokens and a hold of two seconds."""
    base = tmp_path_factory.mktemp("frail")
    arguments = ["--max-live-tokens", "2", "--hold", str(HOLD_S)]
    server = start_server(base / "data", base / "scratch", arguments)
    with (
        grpc.insecure_channel(server.address) as channel,
        contextlib.closing(Rows(server.data_dir)) as rows,
    ):
        stubs = stubs_on(channel, server)
        yield Frail(server, stubs, rows, an_account(stubs))
    assert server.stop() == 0


@pytest.fixture(autouse=True)
def _the_server_recovers(frail: Frail) -> Iterator[None]:
    yield

    def is_well() -> bool:
        with contextlib.suppress(grpc.RpcError):
            check(frail.stubs, "nonsense", "jobs:read", project_id="p")
            ask(frail.stubs.accounts.PutProject, frail.put_project(), frail.stubs.admin)
            return True
        return False

    eventually(is_well)


# ---- how each reason comes about


def malformed_message(frail: Frail) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        raw(frail.stubs.channel, "/doorward.v1.TokenAdmin/GetToken")(b"\x0a", metadata=frail.stubs.admin, timeout=20)
    return refusal_of(caught.value)


def method_unknown(frail: Frail) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        raw(frail.stubs.channel, "/doorward.v1.TokenAdmin/MintToken")(b"", metadata=frail.stubs.admin, timeout=20)
    return refusal_of(caught.value)


def get_token(frail: Frail, metadata: Any) -> Refusal:
    return refused(frail.stubs.tokens.GetToken, GetTokenRequest(token_id="nothing"), metadata)


def await_propagation(frail: Frail, revision: str) -> Refusal:
    return refused(frail.stubs.tokens.AwaitPropagation, AwaitPropagationRequest(revision=revision), frail.stubs.admin)


def project_id_taken(frail: Frail) -> Refusal:
    other = an_account(frail.stubs, projects=0)
    request = PutProjectRequest(account_id=other.account_id, project_id=frail.account.project_ids[0], display_name="X")
    return refused(frail.stubs.accounts.PutProject, request, frail.stubs.admin)


def in_state(frail: Frail, state: str) -> OwnAccount:
    """An account in a state that no RPC of this version leads to."""
    account = an_account(frail.stubs, projects=0)
    frail.rows.fetch("UPDATE accounts SET state = $2 WHERE account_id = $1", account.account_id, state)
    return account


def account_deleted(frail: Frail) -> Refusal:
    account = in_state(frail, "deleted")
    return refused(frail.stubs.accounts.PutAccount, frail.put_account(account.account_id), frail.stubs.admin)


def account_not_active(frail: Frail) -> Refusal:
    account = in_state(frail, "suspended")
    return refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("member")), frail.stubs.admin)


def not_in_plan(frail: Frail) -> Refusal:
    account = an_account(frail.stubs, plan="team", projects=0)
    return refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("job_runner")), frail.stubs.admin)


def beyond_end(frail: Frail) -> Refusal:
    end = Revision.parse(frail.account.put_project(fresh_id("p")).propagation.revision)
    return await_propagation(frail, f"{end.epoch}.{end.number + 1000}")


def changed_concurrently(frail: Frail) -> Refusal:
    """Another transaction is in the way each time."""
    with frail.tripped("RAISE EXCEPTION 'in the way' USING ERRCODE = '40001';", "TRIGGER trip BEFORE INSERT"):
        return refused(frail.stubs.accounts.PutAccount, frail.put_account(), frail.stubs.admin)


def too_many_live_tokens(frail: Frail) -> Refusal:
    account = an_account(frail.stubs, projects=0)
    for _ in range(2):
        account.issue(on_all("member"))
    return refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("member")), frail.stubs.admin)


def hashing_busy(frail: Frail) -> Refusal:
    """Wrong secrets, one after the other, for a token that no digest can decide about."""
    issued = an_account(frail.stubs, projects=0).issue(on_all("member"))
    token_id = issued.token.token_id
    frail.rows.fetch("UPDATE token_secrets SET digest = NULL, pepper_id = NULL WHERE token_id = $1", token_id)
    for _ in range(100):
        try:
            answer = check(frail.stubs, another_of(issued.secret), "jobs:read", project_id="p")
        except grpc.RpcError as error:
            return refusal_of(error)
        assert not answer.allowed
    raise AssertionError("every wrong secret got a bcrypt of its own")


def no_lease(frail: Frail) -> Refusal:
    """The replica cannot renew."""
    refusals: list[Refusal] = []

    def has_lost_its_lease() -> bool:
        with contextlib.suppress(grpc.RpcError):
            check(frail.stubs, "nonsense", "jobs:read", project_id="p")
            return False
        request = CheckRequest(secret="nonsense", permission="jobs:read", project_id="p")
        refusals.append(refused(frail.stubs.authorizer.Check, request, frail.stubs.caller))
        return True

    with frail.rows.holding("LOCK TABLE replicas"):
        eventually(has_lost_its_lease)
    return refusals[-1]


def database_unavailable(frail: Frail) -> Refusal:
    with frail.rows.holding("LOCK TABLE tokens"):
        return get_token(frail, frail.stubs.admin)


def commit_unknown(frail: Frail) -> Refusal:
    """The connection breaks during COMMIT."""
    with frail.tripped("PERFORM pg_terminate_backend(pg_backend_pid());", "CONSTRAINT TRIGGER trip AFTER INSERT"):
        return refused(frail.stubs.accounts.PutAccount, frail.put_account(), frail.stubs.admin)


def propagation_unknown(frail: Frail) -> Refusal:
    with frail.rows.holding("LOCK TABLE replicas"):
        return await_propagation(frail, "1.0")


def revision_not_reached(frail: Frail) -> Refusal:
    """The renewal that would tell the log's end is not answered within a hold."""
    consistency = Consistency(fully_consistent=True)
    request = CheckRequest(secret="x", permission="jobs:read", project_id="p", consistency=consistency)
    check(frail.stubs, "x", "jobs:read", project_id="p")
    with frail.rows.holding("LOCK TABLE replicas"):
        return refused(frail.stubs.authorizer.Check, request, frail.stubs.caller)


def shutting_down(_frail: Frail) -> Refusal:
    """Work that is begun when the server has drained; over the wire grpc itself refuses by then."""

    async def begin() -> Refusal:
        async with asyncio.TaskGroup() as group:
            tasks = Tasks(group)
            await tasks.drain(0)
            with pytest.raises(Unavailable) as caught:
                tasks.start(asyncio.sleep(0))
        return refusal_in(status_pb2.Status.FromString(status_of(caught.value).details))

    return asyncio.run(begin())


@contextlib.contextmanager
def a_silent_replica(frail: Frail) -> Iterator[None]:
    """A replica that has registered and is not heard of any more."""
    frail.rows.fetch(
        "INSERT INTO replicas (replica_id, epoch, hold_ms, applied_revision, renewed_time, started_time, address) "
        "VALUES (gen_random_uuid(), 1, 300000, 0, now(), now(), 'silent')"
    )
    try:
        yield
    finally:
        frail.rows.fetch("DELETE FROM replicas WHERE address = 'silent'")


def propagation_not_awaited(frail: Frail) -> Refusal:
    with a_silent_replica(frail):
        return refused(frail.stubs.accounts.PutProject, frail.put_project(), frail.stubs.admin, timeout_s=2)


def deadline_too_short(frail: Frail) -> Refusal:
    """Too short to begin; and so short that the answer may be late: then once more."""
    refusals: list[Refusal] = []

    def is_told() -> bool:
        try:
            ask(frail.stubs.accounts.PutProject, frail.put_project(), frail.stubs.admin, timeout_s=0.09)
        except grpc.RpcError as error:
            with contextlib.suppress(AssertionError):
                refusals.append(refusal_of(error))
        return bool(refusals)

    eventually(is_told)
    return refusals[0]


def internal(frail: Frail) -> Refusal:
    """The schema is not what the server takes it for."""
    frail.rows.fetch("ALTER TABLE token_activity RENAME COLUMN last_used_time TO used")
    try:
        return get_token(frail, frail.stubs.admin)
    finally:
        frail.rows.fetch("ALTER TABLE token_activity RENAME COLUMN used TO last_used_time")


HOW: Final[Mapping[str, Callable[[Frail], Refusal]]] = {
    "INVALID_FIELDS": lambda frail: refused(frail.stubs.tokens.GetToken, GetTokenRequest(), frail.stubs.admin),
    "MALFORMED_MESSAGE": malformed_message,
    "PAGE_TOKEN_INVALID": lambda frail: refused(
        frail.stubs.accounts.ListAccounts, ListAccountsRequest(page_token="x"), frail.stubs.admin
    ),
    "CREDENTIAL_MISSING": lambda frail: get_token(frail, ()),
    "CREDENTIAL_MALFORMED": lambda frail: get_token(frail, bearer("x")),
    "CREDENTIAL_UNRECOGNIZED": lambda frail: get_token(frail, bearer(generate(SecretKind.OPERATOR, new_id()).reveal())),
    "CALLER_NOT_PERMITTED": lambda frail: get_token(frail, frail.stubs.caller),
    "ACCOUNT_NOT_FOUND": lambda frail: refused(
        frail.stubs.accounts.GetAccount, GetAccountRequest(account_id="nobody"), frail.stubs.admin
    ),
    "TOKEN_NOT_FOUND": lambda frail: get_token(frail, frail.stubs.admin),
    "PROJECT_ID_TAKEN": project_id_taken,
    "ACCOUNT_DELETED": account_deleted,
    "ACCOUNT_NOT_ACTIVE": account_not_active,
    "PERMISSION_SET_NOT_IN_PLAN": not_in_plan,
    "REVISION_OF_ANOTHER_EPOCH": lambda frail: await_propagation(frail, "2.0"),
    "REVISION_BEYOND_END": beyond_end,
    "CHANGED_CONCURRENTLY": changed_concurrently,
    "TOO_MANY_LIVE_TOKENS": too_many_live_tokens,
    "HASHING_BUSY": hashing_busy,
    "NO_LEASE": no_lease,
    "DATABASE_UNAVAILABLE": database_unavailable,
    "COMMIT_UNKNOWN": commit_unknown,
    "PROPAGATION_UNKNOWN": propagation_unknown,
    "REVISION_NOT_REACHED": revision_not_reached,
    "SHUTTING_DOWN": shutting_down,
    "PROPAGATION_NOT_AWAITED": propagation_not_awaited,
    "DEADLINE_TOO_SHORT": deadline_too_short,
    "NOT_IMPLEMENTED": lambda frail: refused(frail.stubs.tokens.UpdateToken, UpdateTokenRequest(), frail.stubs.admin),
    "METHOD_UNKNOWN": method_unknown,
    "INTERNAL": internal,
}
TWO_SCOPES: Final = Grant(permission_set="member", all_projects=True, project_ids=["p"])
FIELDS: Final[Mapping[str, Callable[[Frail], Any]]] = {
    "FIELD_REQUIRED": lambda _: GetTokenRequest(),
    "FIELD_MALFORMED": lambda _: GetTokenRequest(token_id="a b"),
    "FIELD_TOO_LONG": lambda _: GetTokenRequest(token_id="x" * 65),
    "FIELD_OUT_OF_RANGE": lambda _: ListAccountsRequest(page_size=-1),
    "FIELD_CONFLICT": lambda frail: frail.account.wanted(TWO_SCOPES),
    "FIELD_DUPLICATE": lambda frail: frail.account.wanted(on_all("member"), on_all("member")),
    "FIELD_CONTAINS_SECRET": lambda _: RevokeTokenRequest(
        token_id="x", reason=generate(SecretKind.TOKEN, new_id()).reveal()
    ),
    "TOO_MANY_ITEMS": lambda frail: frail.account.wanted(*[on_all("member")] * 101),
    "PERMISSION_UNKNOWN": lambda _: CheckRequest(secret="x", permission="jobs:delete", project_id="p"),
    "PERMISSION_LEVEL_MISMATCH": lambda _: CheckRequest(secret="x", permission="jobs:read", account_id="a"),
    "PERMISSION_SET_UNKNOWN": lambda frail: frail.account.wanted(on_all("job_admn")),
    "GRANT_WITHOUT_EFFECT": lambda frail: frail.account.wanted(on("billing_admin", frail.account.project_ids[0])),
    "PROJECT_NOT_IN_ACCOUNT": lambda frail: frail.account.wanted(on("member", "no-such-project")),
    "PLAN_UNKNOWN": lambda _: PutAccountRequest(account_id="a", display_name="A", plan="enterprize"),
}


def documented(reason: str) -> tuple[str, set[str]]:
    """The code and the metadata keys that the contract's comment gives a reason."""
    before, found, _ = CONTRACT.partition(f"  ERROR_REASON_{reason} = ")
    assert found
    lines = re.split(r"\n\n|;\n", before)[-1].splitlines()
    comment = " ".join(line.strip().removeprefix("//").strip() for line in lines).strip()
    metadata = re.search(r"Metadata: (.*?)\. Example:", comment)
    assert metadata, comment
    return comment.partition(".")[0], set(re.findall(r"`(\w+)`", metadata[1]))


def names(least: int, most: int) -> set[str]:
    numbers = [number for number in ErrorReason.values() if least <= number <= most]
    return {ErrorReason.Name(number).removeprefix("ERROR_REASON_") for number in numbers}


@pytest.fixture(scope="module", params=HOW)
def reason(request: pytest.FixtureRequest) -> str:
    """Each reason in turn; what it is given with is looked at from all sides before the next one."""
    return str(request.param)


@pytest.fixture(scope="module")
def refusal(frail: Frail, reason: str) -> Refusal:
    """A refusal that was given for this reason."""
    return HOW[reason](frail)


def test_each_reason_comes_with_its_code_and_metadata(reason: str, refusal: Refusal) -> None:
    code, keys = documented(reason)
    if reason == "NOT_IMPLEMENTED":
        keys = {"method"}
    assert (refusal.reason, refusal.code, refusal.domain) == (reason, code, "doorward")
    assert set(refusal.metadata) == keys
    assert all(refusal.metadata.values())
    assert (refusal.retry_after_s is not None) is (code in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
    assert refusal.message


def test_no_refusal_tells_anything_of_the_servers_inside(frail: Frail, refusal: Refusal) -> None:
    told = refusal.text.lower()

    inside = ["traceback", "asyncpg", "postgres", ".py", "select ", "relation", "column", "sqlstate", "exception", "0x"]
    inside += ["/tmp", "/home", "in the way", "last_used_time", str(frail.server.data_dir).lower()]  # noqa: S108
    assert [word for word in inside if word in told] == []


@pytest.mark.parametrize("reason", FIELDS)
def test_each_reason_of_a_field_is_told_of_it(frail: Frail, reason: str) -> None:
    request = FIELDS[reason](frail)
    name = type(request).__name__.removesuffix("Request")
    services = (frail.stubs.accounts, frail.stubs.tokens, frail.stubs.authorizer)
    rpc = next(getattr(service, name) for service in services if hasattr(service, name))

    refusal = refused(rpc, request, frail.stubs.admin)

    assert refusal.reason == "INVALID_FIELDS"
    assert reason in {violation.reason for violation in refusal.violations}


def test_every_reason_is_given_here_or_comes_later() -> None:
    assert not LATER & set(HOW)
    assert set(HOW) | LATER == names(1, 199)
    assert set(FIELDS) == names(200, 999)


def test_the_server_can_give_exactly_the_reasons_that_are_given_here() -> None:
    known = names(1, 999)
    sources = [
        path
        for layer in ("api", "service", "replica", "storage", "credentials", "catalog")
        for path in (ROOT / "server/doorward_server" / layer).glob("*.py")
    ]
    sources.append(ROOT / "server/doorward_server/errors.py")

    written = {
        node.value
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }

    assert written & known == set(HOW) | set(FIELDS)


# ---- what a refusal promises


def test_a_change_that_was_not_awaited_stands_and_can_be_awaited(frail: Frail) -> None:
    with a_silent_replica(frail):
        request = frail.put_project()
        refusal = refused(frail.stubs.accounts.PutProject, request, frail.stubs.admin, timeout_s=2)
        revision = refusal.metadata["revision"]
        still_silent = refused(
            frail.stubs.tokens.AwaitPropagation,
            AwaitPropagationRequest(revision=revision),
            frail.stubs.admin,
            timeout_s=1,
        )

    awaited = ask(frail.stubs.tokens.AwaitPropagation, AwaitPropagationRequest(revision=revision), frail.stubs.admin)
    repeated = ask(frail.stubs.accounts.PutProject, request, frail.stubs.admin)

    assert (still_silent.reason, still_silent.metadata) == ("PROPAGATION_NOT_AWAITED", {"revision": revision})
    assert awaited.propagation.revision == revision
    assert Revision.parse(revision) <= Revision.parse(repeated.propagation.revision)


def test_a_replica_that_died_without_a_word_is_waited_for_once_and_then_forgotten(frail: Frail) -> None:
    with a_silent_replica(frail):
        frail.rows.fetch("UPDATE replicas SET hold_ms = 500 WHERE address = 'silent'")
        first = frail.account.put_project(fresh_id("p")).propagation
        eventually(lambda: not frail.rows.fetch("SELECT 1 FROM replicas WHERE address = 'silent'"))
        second = frail.account.put_project(fresh_id("p")).propagation

    assert (first.replicas_confirmed, first.replicas_expired) == (1, 1)
    assert (second.replicas_confirmed, second.replicas_expired) == (1, 0)


@pytest.mark.parametrize("how", [changed_concurrently, deadline_too_short, database_unavailable])
def test_what_nothing_was_done_of_has_left_nothing(frail: Frail, how: Callable[[Frail], Refusal]) -> None:
    before = frail.rows.footprint()

    how(frail)

    assert frail.rows.footprint() == before


def test_the_account_has_room_again_when_a_token_was_revoked(frail: Frail) -> None:
    account = an_account(frail.stubs, projects=0)
    first, _ = (account.issue(on_all("member")).token.token_id for _ in range(2))
    full = refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("member")), frail.stubs.admin)
    tried = refused(
        frail.stubs.tokens.IssueToken, account.wanted(on_all("member"), validate_only=True), frail.stubs.admin
    )

    account.revoke(first)
    account.revoke(first)
    account.issue(on_all("member"))

    again = refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("member")), frail.stubs.admin)
    assert full == tried == again
    assert full.metadata == {"account_id": account.account_id, "limit": "2"}
    assert len(account.token_ids()) == 3


def test_a_right_secret_without_a_digest_is_recognized_after_wrong_ones(frail: Frail) -> None:
    """bcrypt decides, and a wrong secret before it costs a wait, not the token."""
    issued = frail.account.issue(on_all("job_admin"))
    project_id = frail.account.project_ids[0]
    token_id = issued.token.token_id
    frail.rows.fetch("UPDATE token_secrets SET digest = NULL, pepper_id = NULL WHERE token_id = $1", token_id)
    assert not check(frail.stubs, another_of(issued.secret), "jobs:read", project_id=project_id).allowed

    def is_allowed() -> bool:
        with contextlib.suppress(grpc.RpcError):
            return check(frail.stubs, issued.secret, "jobs:read", project_id=project_id).allowed
        return False

    eventually(is_allowed)
    assert not check(frail.stubs, another_of(issued.secret), "jobs:read", project_id=project_id).allowed
    account_tokens = frail.rows.fetch("SELECT digest IS NOT NULL FROM token_secrets WHERE token_id = $1", token_id)
    assert account_tokens == [(True,)]
