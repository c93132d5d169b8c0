"""Watch over the wire, with a watcher written by hand: what it is told, in what order, and which changes wait for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from doorward.core.secret import SecretKind, find_secret, generate, new_id
from doorward.v1.authorizer_pb2 import WatchKey, WatchRequest
from doorward.v1.system_admin_pb2 import CreateOperatorRequest, ListReplicasRequest, RevokeOperatorRequest
from doorward.v1.token_admin_pb2 import RevokeTokenRequest
from doorward.v1.types_pb2 import ACCOUNT_STATE_ACTIVE, OPERATOR_ROLE_CALLER
from tests.support.server import PATIENCE_S, bearer, start_server, stubs_on
from tests.support.watching import Watching, keys_of, opened_refused
from tests.support.wire import another_of, ask, eventually, on, on_all, refusal_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from doorward.v1.token_admin_pb2 import RevokeTokenResponse
    from tests.support.server import Stubs
    from tests.support.wire import OwnAccount

    Change = Callable[[], Any]


@pytest.fixture
def watcher(stubs: Stubs) -> Iterator[Watching]:
    """A session of the caller's, with start and catalog taken and acknowledged."""
    with Watching(stubs) as watcher:
        yield watcher


@pytest.fixture
def revoking(account: OwnAccount) -> Iterator[Revoking]:
    """Revokes in the background."""
    with ThreadPoolExecutor(1) as pool:
        yield Revoking(account, pool)


class Revoking:
    """Revokes tokens while the test goes on."""

    def __init__(self, account: OwnAccount, pool: ThreadPoolExecutor) -> None:
        self._account = account
        self._pool = pool

    def begin(self, token_id: str) -> Future[RevokeTokenResponse]:
        request = RevokeTokenRequest(token_id=token_id)
        stubs = self._account.stubs
        return self._pool.submit(lambda: ask(stubs.tokens.RevokeToken, request, stubs.admin))


def token_key(token_id: str) -> WatchKey:
    return WatchKey(token_id=token_id)


# ---- what it is told


def test_a_session_begins_with_its_start_and_the_catalog(watcher: Watching) -> None:
    assert len(watcher.start.session_id) >= 16
    assert not watcher.start.resumed
    assert watcher.start.hold.ToTimedelta() == 4 * watcher.start.ask_interval.ToTimedelta()
    assert watcher.start.ack_within == watcher.start.ask_interval
    assert watcher.start.max_held_keys == 200_000
    assert watcher.catalog.schema == 1
    assert {held.name for held in watcher.catalog.permission_sets} >= {"job_admin", "read_only"}
    assert {plan.name for plan in watcher.catalog.plans} >= {"enterprise"}


def test_two_sessions_have_two_ids(stubs: Stubs, watcher: Watching) -> None:
    with Watching(stubs) as other:
        assert other.start.session_id != watcher.start.session_id


def test_a_warm_start_is_never_granted(stubs: Stubs) -> None:
    with Watching(stubs) as watcher:
        position = watcher.position
    with Watching(stubs, opens=False) as again:
        hello = WatchRequest.Hello(resume_position=position, resume_keys=[token_key(new_id())])
        again.send(hello=hello)
        assert not again.expect("start").start.resumed


def test_a_snapshot_has_all_that_decides_and_nothing_that_proves(account: OwnAccount, watcher: Watching) -> None:
    issued = account.issue(on("job_admin", account.project_ids[0]), on_all("read_only"))

    snapshot = watcher.resolved(issued.secret)

    token = snapshot.token
    assert token.token_id == issued.token.token_id
    assert (token.account.account_id, token.account.plan) == (account.account_id, "enterprise")
    assert token.account.state == ACCOUNT_STATE_ACTIVE
    assert [secret.version for secret in token.secrets] == [1]
    assert token.secret_version == 1
    assert {(grant.permission_set, grant.all_projects, tuple(grant.project_ids)) for grant in token.grants} == {
        ("job_admin", False, (account.project_ids[0],)),
        ("read_only", True, ()),
    }
    assert issued.secret.encode() not in snapshot.SerializeToString()
    assert issued.secret.rpartition("_")[2].encode() not in snapshot.SerializeToString()


def test_a_secret_that_is_not_recognized_tells_the_id_in_it(account: OwnAccount, watcher: Watching) -> None:
    issued = account.issue(on_all("read_only"))
    unknown = generate(SecretKind.TOKEN, new_id()).reveal()

    assert watcher.resolved(another_of(issued.secret)).unrecognized.token_id == issued.token.token_id
    found = find_secret(unknown, SecretKind.TOKEN)
    assert found is not None
    assert watcher.resolved(unknown).unrecognized.token_id == found.subject_id
    assert watcher.resolved("nonsense").WhichOneof("entry") == "unrecognized"


def test_a_project_is_told_with_its_account_and_an_unknown_one_without(account: OwnAccount, watcher: Watching) -> None:
    known = watcher.resolved_project(account.project_ids[0]).project
    unknown = watcher.resolved_project("nowhere").project

    assert (known.project_id, known.account_id) == (account.project_ids[0], account.account_id)
    assert (unknown.project_id, unknown.account_id) == ("nowhere", "")


def test_what_cannot_be_asked_for_fails_in_its_place(watcher: Watching) -> None:
    request_id = watcher.resolve("x" * 129)
    failure = watcher.expect("failure").failure

    assert failure.id == request_id
    assert refusal_in(failure.error).reason == "INVALID_FIELDS"
    assert watcher.resolved("nonsense").unrecognized.token_id == ""


@pytest.mark.parametrize(
    ("body", "bad"),
    [
        ({"resolve": WatchRequest.Resolve(id=7)}, ("resolve.secret", "FIELD_REQUIRED")),
        ({"resolve": WatchRequest.Resolve(id=7, secret="x" * 129)}, ("resolve.secret", "FIELD_TOO_LONG")),
        ({"resolve_project": WatchRequest.ResolveProject(id=7)}, ("resolve_project.project_id", "FIELD_REQUIRED")),
        (
            {"resolve_project": WatchRequest.ResolveProject(id=7, project_id="a/b")},
            ("resolve_project.project_id", "FIELD_MALFORMED"),
        ),
    ],
)
def test_a_resolve_that_makes_no_sense_fails_alone(
    watcher: Watching, body: dict[str, Any], bad: tuple[str, str]
) -> None:
    watcher.send(**body)
    failure = watcher.expect("failure").failure
    assert failure.id == 7
    assert refusal_in(failure.error).bad_fields == [bad]
    watcher.granted()


def test_the_list_of_replicas_tells_of_the_watchers_that_acknowledged(
    stubs: Stubs, account: OwnAccount, watcher: Watching
) -> None:
    watcher.granted()
    account.put_project(f"{account.account_id}-another")
    (replica,) = ask(stubs.system.ListReplicas, ListReplicasRequest(), stubs.admin).replicas
    assert replica.watchers >= 1


def test_a_grant_is_for_what_the_lease_has_left(watcher: Watching) -> None:
    first, second = watcher.granted(), watcher.granted()

    for grant in (first, second):
        assert 0 < grant.length.ToNanoseconds() <= watcher.start.hold.ToNanoseconds() / 1.25
    assert first.latest_time.ToNanoseconds() <= second.latest_time.ToNanoseconds()


# ---- changes


def a_revoked_token(account: OwnAccount, watcher: Watching) -> tuple[str, Change]:
    issued = account.issue(on_all("read_only"))
    watcher.resolved(issued.secret)
    return f"token:{issued.token.token_id}", lambda: account.revoke(issued.token.token_id)


def another_plan(account: OwnAccount, watcher: Watching) -> tuple[str, Change]:
    watcher.resolved(account.issue(on("job_admin", account.project_ids[0])).secret)
    return f"account:{account.account_id}", lambda: account.set_plan("team")


def a_new_project(account: OwnAccount, watcher: Watching) -> tuple[str, Change]:
    project_id = f"{account.account_id}-new"
    watcher.resolved_project(project_id)
    return f"project:{project_id}", lambda: account.put_project(project_id)


@pytest.mark.parametrize("of", [a_revoked_token, another_plan, a_new_project])
def test_a_change_of_what_is_held_is_told_and_waited_for(
    account: OwnAccount, watcher: Watching, of: Callable[[OwnAccount, Watching], tuple[str, Change]]
) -> None:
    watcher.granted()
    key, change = of(account, watcher)
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        assert key in keys_of(watcher.expect("evict").evict)
        assert not changing.done()
        watcher.acknowledge()
        propagation = changing.result().propagation

    assert propagation.replicas_expired == 0
    assert propagation.watchers_confirmed >= 1


def test_a_change_of_what_is_not_held_is_neither_told_nor_waited_for(
    account: OwnAccount, watcher: Watching, revoking: Revoking
) -> None:
    held, other = account.issue(on_all("read_only")), account.issue(on_all("read_only"))
    watcher.granted()
    watcher.resolved(held.secret)

    assert revoking.begin(other.token.token_id).result().propagation.replicas_expired == 0
    assert watcher.says_nothing()


def test_a_snapshot_behind_a_change_contains_it(account: OwnAccount, watcher: Watching, revoking: Revoking) -> None:
    issued = account.issue(on_all("read_only"))
    watcher.granted()
    assert not watcher.resolved(issued.secret).token.revoked

    changing = revoking.begin(issued.token.token_id)
    assert keys_of(watcher.expect("evict").evict) == {f"token:{issued.token.token_id}"}
    assert watcher.resolved(issued.secret).token.revoked
    watcher.acknowledge()

    assert changing.result().propagation.replicas_expired == 0


def test_what_was_forgotten_is_not_told(account: OwnAccount, watcher: Watching, revoking: Revoking) -> None:
    issued = account.issue(on_all("read_only"))
    watcher.granted()
    watcher.resolved(issued.secret)

    watcher.forget(token_key(issued.token.token_id))
    watcher.granted()  # taken in order: the forget is done
    assert revoking.begin(issued.token.token_id).result().propagation.replicas_expired == 0
    assert watcher.says_nothing()


def test_a_snapshot_that_crossed_a_forget_stays_held(
    account: OwnAccount, watcher: Watching, revoking: Revoking
) -> None:
    issued = account.issue(on_all("read_only"))
    watcher.granted()
    before = watcher.sequence
    watcher.resolved(issued.secret)

    watcher.forget(token_key(issued.token.token_id), sequence=before)
    changing = revoking.begin(issued.token.token_id)
    assert keys_of(watcher.expect("evict").evict) == {f"token:{issued.token.token_id}"}
    watcher.acknowledge()
    assert changing.result().propagation.replicas_expired == 0


def test_nobody_waits_for_a_watcher_that_said_goodbye(
    account: OwnAccount, watcher: Watching, revoking: Revoking
) -> None:
    issued = account.issue(on_all("read_only"))
    watcher.granted()
    watcher.resolved(issued.secret)

    watcher.goodbye()

    assert revoking.begin(issued.token.token_id).result().propagation.replicas_expired == 0


# ---- one that does not behave


def test_a_watcher_that_never_acknowledges_is_waited_for_once(
    account: OwnAccount, watcher: Watching, revoking: Revoking
) -> None:
    first, second = account.issue(on_all("read_only")), account.issue(on_all("read_only"))
    watcher.granted()
    for issued in (first, second):
        watcher.resolved(issued.secret)

    revoking.begin(first.token.token_id).result()
    refusal = watcher.ended()
    fast = revoking.begin(second.token.token_id).result().propagation

    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS")
    assert fast.replicas_expired == 0


NONSENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "a second hello": ("hello", {"hello": WatchRequest.Hello()}),
    "no body": ("body", {}),
    "a position ahead of all": ("ack.position", {"ack": WatchRequest.Ack(position="1.9999999")}),
    "a position of another epoch": ("ack.position", {"ack": WatchRequest.Ack(position="7.1")}),
    "no position": ("ack.position", {"ack": WatchRequest.Ack()}),
    "half a position": ("ack.position", {"ack": WatchRequest.Ack(position="1.")}),
    "ask 0": ("ask.ask", {"ask": WatchRequest.Ask()}),
    "an ask below 0": ("ask.ask", {"ask": WatchRequest.Ask(ask=-1)}),
    "a sequence ahead of all": ("forget.sequence", {"forget": WatchRequest.Forget(keys=[token_key("x")], sequence=99)}),
    "a sequence below 0": ("forget.sequence", {"forget": WatchRequest.Forget(keys=[token_key("x")], sequence=-1)}),
    "nothing to forget": ("forget.keys", {"forget": WatchRequest.Forget(sequence=1)}),
    "too much to forget": ("forget.keys", {"forget": WatchRequest.Forget(keys=[token_key("x")] * 1_001, sequence=1)}),
    "a key without a kind": (
        "forget.keys[1].key",
        {"forget": WatchRequest.Forget(keys=[token_key("x"), WatchKey()], sequence=1)},
    ),
    "another's goodbye": ("goodbye.session_id", {"goodbye": WatchRequest.Goodbye(session_id="another")}),
    "nobody's goodbye": ("goodbye.session_id", {"goodbye": WatchRequest.Goodbye()}),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_what_makes_no_sense_ends_the_session(watcher: Watching, what: str) -> None:
    field, body = NONSENSE[what]
    refusal = watcher.refused(**body)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert [violation.field for violation in refusal.violations] == [field]


def test_an_ask_of_before_ends_the_session(watcher: Watching) -> None:
    grant = watcher.granted()
    assert watcher.refused(ask=WatchRequest.Ask(ask=grant.ask)).bad_fields == [("ask.ask", "FIELD_OUT_OF_RANGE")]


def test_a_body_of_a_later_version_ends_the_session(watcher: Watching) -> None:
    # Field 15, a message: whatever it asks for, this replica would not do it.
    watcher.send_as(WatchRequest.FromString(b"\x7a\x02\x08\x01"))
    refusal = watcher.ended()
    assert refusal is not None
    assert refusal.bad_fields == [("body", "FIELD_REQUIRED")]


@pytest.mark.parametrize("body", [{"ask": WatchRequest.Ask(ask=1)}, {"goodbye": WatchRequest.Goodbye()}, {}])
def test_the_first_message_is_a_hello(stubs: Stubs, body: dict[str, Any]) -> None:
    with Watching(stubs, opens=False) as watcher:
        assert watcher.refused(**body).bad_fields == [("hello", "FIELD_REQUIRED")]


@pytest.mark.parametrize(
    ("hello", "bad"),
    [
        ({"agent": "x" * 101}, ("hello.agent", "FIELD_TOO_LONG")),
        ({"agent": "x\x00"}, ("hello.agent", "FIELD_MALFORMED")),
        ({"resume_position": "yesterday"}, ("hello.resume_position", "FIELD_MALFORMED")),
        ({"resume_keys": [token_key("x")]}, ("hello.resume_keys", "FIELD_CONFLICT")),
    ],
)
def test_a_hello_that_makes_no_sense_opens_nothing(stubs: Stubs, hello: dict[str, Any], bad: tuple[str, str]) -> None:
    with Watching(stubs, opens=False) as watcher:
        assert watcher.refused(hello=WatchRequest.Hello(**hello)).bad_fields == [bad]


def test_an_agent_that_is_a_secret_is_refused_and_not_repeated(stubs: Stubs, account: OwnAccount) -> None:
    secret = account.issue(on_all("read_only")).secret
    with Watching(stubs, opens=False) as watcher:
        refusal = watcher.refused(hello=WatchRequest.Hello(agent=secret))
    assert refusal.bad_fields == [("hello.agent", "FIELD_CONTAINS_SECRET")]
    assert secret not in refusal.text


# ---- who may watch


def test_the_stream_of_a_revoked_caller_ends(stubs: Stubs) -> None:
    request = CreateOperatorRequest(role=OPERATOR_ROLE_CALLER, display_name="a watcher's")
    created = ask(stubs.system.CreateOperator, request, stubs.admin)
    with Watching(stubs, bearer(created.secret)) as watcher:
        watcher.granted()
        ask(
            stubs.system.RevokeOperator,
            RevokeOperatorRequest(operator_id=created.operator.operator_id),
            stubs.admin,
        )
        refusal = watcher.ended()

    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")
    assert opened_refused(stubs, bearer(created.secret)).reason == "CREDENTIAL_UNRECOGNIZED"


def test_the_stream_of_a_caller_that_expires_ends_also_if_it_says_nothing(tmp_path: Path) -> None:
    server = start_server(tmp_path / "data", tmp_path / "scratch", ["--hold", "0.5"])
    with grpc.insecure_channel(server.address) as channel:
        stubs = stubs_on(channel, server)
        request = CreateOperatorRequest(
            role=OPERATOR_ROLE_CALLER, display_name="soon gone", ttl=Duration(nanos=900_000_000)
        )
        created = ask(stubs.system.CreateOperator, request, stubs.admin)
        with Watching(stubs, bearer(created.secret)) as watcher:
            refusal = watcher.ended()
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")
    assert server.stop() == 0


def test_a_token_may_not_watch(stubs: Stubs, account: OwnAccount) -> None:
    refusal = opened_refused(stubs, bearer(account.issue(on_all("account_admin")).secret))
    assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")


def test_nobody_may_not_watch(stubs: Stubs) -> None:
    refusal = opened_refused(stubs, ())
    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_MISSING")


def test_every_operator_that_may_check_may_watch(stubs: Stubs) -> None:
    with Watching(stubs, stubs.admin) as watcher:
        assert watcher.granted().length.ToNanoseconds() > 0


# ---- bounds and shutdown, at servers of their own


def is_full(stubs: Stubs) -> bool:
    """Whether one more is refused as one too many; one that never acknowledges ends with the same reason."""
    refusal = opened_refused(stubs)
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS")
    return "as many watchers as it may, 1;" in refusal.message


def test_watchers_are_bounded(tmp_path: Path) -> None:
    server = start_server(tmp_path / "data", tmp_path / "scratch", ["--max-watchers", "1"])
    with grpc.insecure_channel(server.address) as channel:
        stubs = stubs_on(channel, server)
        with Watching(stubs) as first:
            assert is_full(stubs)
            first.goodbye()
        # One that has not said hello yet keeps a place, too.
        with Watching(stubs, opens=False) as silent:
            eventually(lambda: is_full(stubs), PATIENCE_S)
            silent.open()
            silent.goodbye()
        with Watching(stubs) as second:
            assert second.granted().length.ToNanoseconds() > 0
            second.goodbye()
    assert server.stop() == 0


def test_a_server_that_stops_resets_its_watchers_and_awaits_their_goodbye(tmp_path: Path) -> None:
    server = start_server(tmp_path / "data", tmp_path / "scratch")
    with (
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor(1) as pool,
        Watching(stubs_on(channel, server)) as watcher,
    ):
        watcher.granted()
        stopping = pool.submit(server.stop)
        cause = refusal_in(watcher.expect("reset").reset.cause)
        watcher.goodbye()
        status = stopping.result()

    assert (cause.code, cause.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert status == 0
