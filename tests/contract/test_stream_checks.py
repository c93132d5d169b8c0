"""StreamChecks over the wire: each message is a BatchCheck of its own, answered once, in its place, whatever the others do."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1.authorizer_pb2 import (
    BatchCheckItem,
    BatchCheckRequest,
    BatchCheckResponse,
    StreamChecksRequest,
    StreamChecksResponse,
)
from doorward.v1.system_admin_pb2 import CreateOperatorRequest, RevokeOperatorRequest
from doorward.v1.types_pb2 import OPERATOR_ROLE_CALLER, Consistency
from tests.support.server import bearer, start_server, stubs_on
from tests.support.wire import (
    OwnAccount,
    an_account,
    ask,
    check,
    code_of,
    eventually,
    on,
    on_all,
    raw_stream,
    refusal_in,
    refusal_of,
    refused,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.frail import Frail
    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import Metadata, Refusal

PATH = "/doorward.v1.Authorizer/StreamChecks"


class Talk:
    """One stream, as its caller holds it."""

    def __init__(self, stubs: Stubs, metadata: Metadata | None = None) -> None:
        self._sent: queue.SimpleQueue[StreamChecksRequest | None] = queue.SimpleQueue()
        self._call: Any = stubs.authorizer.StreamChecks(
            iter(self._sent.get, None), metadata=metadata or stubs.caller, timeout=60
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self._sent.put(None)
        self._call.cancel()

    def send(self, message_id: int, request: BatchCheckRequest) -> None:
        """Sends a batch."""
        self._sent.put(StreamChecksRequest(id=message_id, request=request))

    def next(self) -> StreamChecksResponse:
        """The next answer, of whatever batch it is."""
        answer: StreamChecksResponse = next(self._call)
        return answer

    def asked(self, message_id: int, request: BatchCheckRequest) -> BatchCheckResponse:
        """The answer of a batch when no other is under way."""
        self.send(message_id, request)
        answer = self.next()
        assert (answer.id, answer.WhichOneof("outcome")) == (message_id, "response")
        return answer.response

    def failed(self, message_id: int, request: BatchCheckRequest) -> Refusal:
        """What such a batch is refused with."""
        self.send(message_id, request)
        answer = self.next()
        assert (answer.id, answer.WhichOneof("outcome")) == (message_id, "error")
        return refusal_in(answer.error)

    def ended(self) -> Refusal:
        """The status that the stream ends with; no answer comes before it."""
        with pytest.raises(grpc.RpcError) as caught:
            self.next()
        return refusal_of(caught.value)

    def rest(self) -> list[StreamChecksResponse]:
        """Sends no more, and takes all that comes until the stream ends well."""
        self._sent.put(None)
        return list(self._call)


@pytest.fixture
def talk(stubs: Stubs) -> Iterator[Talk]:
    """A stream of the caller's."""
    with Talk(stubs) as talk:
        yield talk


def a_batch(account: OwnAccount, secret: str, count: int = 3, **more: Any) -> BatchCheckRequest:
    """As many checks, allowed and denied ones."""
    names = ("jobs:write", "environments:read", "billing:read")
    items = [
        BatchCheckItem(permission=name, account_id=account.account_id)
        if name.startswith("billing")
        else BatchCheckItem(permission=name, project_id=account.project_ids[number % 2])
        for number, name in zip(range(count), names * count, strict=False)
    ]
    return BatchCheckRequest(secret=secret, items=items, **more)


# ---- the same as BatchCheck


@pytest.mark.parametrize("count", [1, 3, 200, 201, 1000])
def test_a_message_is_answered_as_a_batch_check(stubs: Stubs, account: OwnAccount, talk: Talk, count: int) -> None:
    secret = account.issue(on("job_admin", account.project_ids[0])).secret
    batch = a_batch(account, secret, count)
    batch.items[0].secret = "nonsense"

    for message_id in (7, 8):
        assert talk.asked(message_id, batch) == ask(stubs.authorizer.BatchCheck, batch, stubs.caller)


def test_every_message_is_answered_exactly_once(stubs: Stubs, account: OwnAccount, talk: Talk) -> None:
    secrets = [account.issue(on_all(name)).secret for name in ("job_admin", "read_only", "member")]
    secrets += [generate(SecretKind.TOKEN, new_id()).reveal() for _ in range(40)]
    batches = {number: a_batch(account, secrets[number % len(secrets)], 1 + number % 7) for number in range(-5, 600)}

    for message_id, batch in batches.items():
        talk.send(message_id, batch)
    answers = talk.rest()

    assert sorted(answer.id for answer in answers) == sorted(batches)
    for answer in answers:
        expected = ask(stubs.authorizer.BatchCheck, batches[answer.id], stubs.caller)
        assert list(answer.response.results) == list(expected.results)


def test_a_large_batch_and_small_ones_go_side_by_side(account: OwnAccount, talk: Talk) -> None:
    secret = account.issue(on_all("job_admin")).secret
    sizes = [1000, 1, 1000, 1, 1000, 1]

    for message_id, size in enumerate(sizes):
        talk.send(message_id, a_batch(account, secret, size))

    assert {answer.id: len(answer.response.results) for answer in talk.rest()} == dict(enumerate(sizes))


def test_the_ids_are_the_callers_own(account: OwnAccount, talk: Talk) -> None:
    batch = a_batch(account, account.issue(on_all("job_admin")).secret)

    for message_id in (0, 1, 127, 128, 2**31, 2**63 - 1, -1, -(2**63)):
        assert len(talk.asked(message_id, batch).results) == 3


# ---- a message's failure is its own


def test_a_message_that_fails_is_answered_in_its_place_and_the_stream_goes_on(
    stubs: Stubs, account: OwnAccount, talk: Talk
) -> None:
    batch = a_batch(account, account.issue(on_all("job_admin")).secret)
    wrong = [
        BatchCheckRequest(),
        BatchCheckRequest(secret="x" * 129, items=batch.items),
        a_batch(account, "x", 1001),
        a_batch(account, "x", consistency=Consistency(at_least_as_fresh="x")),
        a_batch(account, "x", consistency=Consistency(at_least_as_fresh="1.999999999")),
        a_batch(account, "x", consistency=Consistency(at_least_as_fresh="2.1")),
        a_batch(account, "x", consistency=Consistency(minimize_latency=False)),
    ]

    for message_id, request in enumerate(wrong):
        assert talk.failed(message_id, request) == refused(stubs.authorizer.BatchCheck, request, stubs.caller)
        assert talk.asked(-message_id, batch).results[0].allowed


def test_an_item_that_is_wrong_gets_its_own_error(account: OwnAccount, talk: Talk) -> None:
    batch = a_batch(account, account.issue(on_all("job_admin")).secret)
    batch.items[1].permission = "jobs:delete"

    answer = talk.asked(1, batch)

    assert [result.HasField("error") for result in answer.results] == [False, True, False]
    assert refusal_in(answer.results[1].error).bad_fields == [("permission", "PERMISSION_UNKNOWN")]


def test_a_message_without_a_request_is_one_without_items(stubs: Stubs) -> None:
    (answer,) = raw_stream(stubs.channel, PATH)(iter([b"\x08\x05"]), metadata=stubs.caller, timeout=20)

    told = StreamChecksResponse.FromString(answer)
    assert told.id == 5
    assert refusal_in(told.error).bad_fields == [("items", "FIELD_REQUIRED")]


def test_bytes_that_are_no_message_end_the_stream_once_the_others_are_answered(
    stubs: Stubs, account: OwnAccount
) -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    first = StreamChecksRequest(id=1, request=a_batch(account, secret))
    call = raw_stream(stubs.channel, PATH)(
        iter([first.SerializeToString(), b"\xff\xff"]), metadata=stubs.caller, timeout=20
    )

    assert StreamChecksResponse.FromString(next(call)).id == 1
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert refusal_of(caught.value).reason == "MALFORMED_MESSAGE"


# ---- who calls, looked at for each message


@pytest.mark.parametrize("is_wrong", [False, True], ids=["right", "wrong"])
def test_a_revoked_callers_message_gets_the_error_and_the_stream_ends_with_it(
    stubs: Stubs, account: OwnAccount, is_wrong: bool
) -> None:
    batch = a_batch(account, account.issue(on_all("job_admin")).secret)
    made = ask(
        stubs.system.CreateOperator,
        CreateOperatorRequest(role=OPERATOR_ROLE_CALLER, display_name="short-lived"),
        stubs.admin,
    )
    with Talk(stubs, bearer(made.secret)) as talk:
        assert talk.asked(1, batch).results[0].allowed
        ask(stubs.system.RevokeOperator, RevokeOperatorRequest(operator_id=made.operator.operator_id), stubs.admin)

        # Whoever may not ask any more is not told what is wrong with a message either.
        told = talk.failed(2, BatchCheckRequest() if is_wrong else batch)
        ended = talk.ended()

    assert (told.code, told.reason) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")
    assert ended == told


@pytest.mark.parametrize("messages", [0, 1])
def test_who_may_not_ask_is_told_at_once(stubs: Stubs, account: OwnAccount, messages: int) -> None:
    issued = account.issue(on_all("account_admin"))
    sent = [StreamChecksRequest(id=1, request=a_batch(account, issued.secret)).SerializeToString()] * messages

    told = []
    for metadata in (bearer(issued.secret), bearer("x"), ()):
        with pytest.raises(grpc.RpcError) as caught:
            list(raw_stream(stubs.channel, PATH)(iter(sent), metadata=metadata, timeout=20))
        told.append(refusal_of(caught.value).reason)

    assert told == ["CALLER_NOT_PERMITTED", "CREDENTIAL_MALFORMED", "CREDENTIAL_MISSING"]


# ---- what is true, looked at for each message


def test_a_revocation_that_has_returned_is_seen_by_the_next_message(account: OwnAccount, talk: Talk) -> None:
    for message_id in range(20):
        issued = account.issue(on_all("job_admin"))
        batch = a_batch(account, issued.secret)
        before = talk.asked(message_id, batch)
        account.revoke(issued.token.token_id)
        after = talk.asked(message_id, batch)

        assert before.results[0].allowed
        assert {verdict(result) for result in after.results} == {"TOKEN_REVOKED"}


@pytest.mark.usefixtures("recovered")
def test_without_a_lease_a_message_is_refused_and_the_stream_goes_on(frail: Frail) -> None:
    token = frail.account.issue(on_all("job_admin"))
    batch = a_batch(frail.account, token.secret)
    with Talk(frail.stubs) as talk:
        assert talk.asked(1, batch).results[0].allowed
        with frail.rows.holding("LOCK TABLE replicas"):
            eventually(lambda: code_of(lambda: check(frail.stubs, "x", "jobs:read", project_id="p")) == "UNAVAILABLE")
            told = talk.failed(2, batch)
        frail.recover()

        assert (told.code, told.reason) == ("UNAVAILABLE", "NO_LEASE")
        assert talk.asked(3, batch).results[0].allowed
    frail.account.revoke(token.token.token_id)


@pytest.mark.usefixtures("recovered")
def test_a_message_that_must_be_loaded_holds_up_no_other(frail: Frail) -> None:
    token = frail.account.issue(on_all("job_admin"))
    known, unknown = (
        a_batch(frail.account, secret) for secret in (token.secret, generate(SecretKind.TOKEN, new_id()).reveal())
    )
    with Talk(frail.stubs) as talk:
        talk.asked(1, known)
        with frail.rows.holding("LOCK TABLE tokens"):
            talk.send(2, unknown)
            talk.send(3, known)
            first = talk.next()
        second = talk.next()

    assert (first.id, second.id) == (3, 2)
    assert verdict(second.response.results[0]) == "TOKEN_UNRECOGNIZED"
    frail.account.revoke(token.token.token_id)


# ---- bounds


def test_a_caller_that_reads_nothing_is_read_no_further(server: ServerProcess, account: OwnAccount) -> None:
    """Else its answers would pile up: 4,000 large batches are some 400 MB of them."""
    secret = account.issue(on_all("job_admin")).secret
    message = StreamChecksRequest(id=1, request=a_batch(account, secret, 1000)).SerializeToString()
    taken = 0

    def messages() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(4000):
            taken += 1
            yield message

    def is_at_rest() -> bool:
        before = taken
        with grpc.insecure_channel(server.address) as other:
            for _ in range(20):
                check(stubs_on(other, server), secret, "jobs:write", project_id=account.project_ids[0])
        return before == taken

    with grpc.insecure_channel(server.address) as channel:
        before_kb = resident_kb(server)
        call = raw_stream(channel, PATH)(messages(), metadata=bearer(server.caller_credential), timeout=60)
        eventually(lambda: taken > 0 and is_at_rest())
        grown_kb = resident_kb(server) - before_kb
        read = [next(call) for _ in range(taken)]

        assert taken < 1000
        assert grown_kb < 150_000
        assert all(len(answer) > 10_000 for answer in read)
        call.cancel()


def resident_kb(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


def test_streams_leave_room_for_other_calls(tmp_path: Path) -> None:
    running = start_server(tmp_path / "data", tmp_path / "scratch", ["--max-concurrent-rpcs", "10"])
    with grpc.insecure_channel(running.address) as channel:
        stubs = stubs_on(channel, running)
        batch = a_batch(an_account(stubs), "nonsense")
        with Talk(stubs) as first, Talk(stubs) as second:
            for talk in (first, second):
                assert talk.asked(1, batch).results
            with Talk(stubs) as third:
                told = third.ended()
            assert not check(stubs, "nonsense", "jobs:read", project_id="p").allowed

        assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS")
        assert told.retry_after_s

        def has_room() -> bool:
            with Talk(stubs) as again:
                again.send(1, batch)
                return code_of(again.next) == "OK"

        eventually(has_room)
    assert running.stop() == 0


def test_a_caller_that_goes_away_leaves_nothing_in_the_log(
    stubs: Stubs, server: ServerProcess, account: OwnAccount
) -> None:
    batch = a_batch(account, account.issue(on_all("job_admin")).secret, 1000)
    before = len(server.log.read_text(encoding="utf-8"))
    for _ in range(5):
        with Talk(stubs) as talk:
            for message_id in range(100):
                talk.send(message_id, batch)
            talk.next()
        assert not check(stubs, "nonsense", "jobs:read", project_id="p").allowed

    told = server.log.read_text(encoding="utf-8")[before:]
    assert "rpc_failed" not in told
    assert "StreamChecks" not in told


# ---- the end


def test_a_server_that_stops_answers_what_it_has_read_and_ends_the_stream(tmp_path: Path) -> None:
    """At once: else the stop would wait for the streams until the drain's end, ten minutes from here."""
    running = start_server(tmp_path / "data", tmp_path / "scratch", ["--drain", "600"])
    with grpc.insecure_channel(running.address) as channel:
        stubs = stubs_on(channel, running)
        account = an_account(stubs)
        batch = a_batch(account, account.issue(on_all("job_admin")).secret)
        with Talk(stubs) as idle, Talk(stubs) as talk:
            for each in (idle, talk):
                assert each.asked(1, batch).results[0].allowed

            assert running.stop() == 0

            told = [each.ended() for each in (idle, talk)]

    assert {(one.code, one.reason) for one in told} == {("UNAVAILABLE", "SHUTTING_DOWN")}
    assert all(one.retry_after_s for one in told)
