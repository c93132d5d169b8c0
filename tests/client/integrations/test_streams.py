"""Streams behind both guards of gRPC: where the id of a stream stands, and what it may say afterwards. Over the network."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import pytest

from examples import jobs_pb2 as pb
from tests.support.guarded import answer_of
from tests.support.server import bearer
from tests.support.wire import TIMEOUT_S, an_account, mistyped, on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.guarded import Grpc
    from tests.support.server import Stubs
    from tests.support.wire import OwnAccount

Metadata: TypeAlias = "tuple[tuple[str, str], ...]"


@pytest.fixture(scope="module")
def account(stubs: Stubs) -> OwnAccount:
    return an_account(stubs)


@pytest.fixture(scope="module")
def secret(account: OwnAccount) -> str:
    return account.issue(on("job_admin", account.project_ids[0])).secret


@pytest.fixture(scope="module")
def project_id(account: OwnAccount) -> str:
    return account.project_ids[0]


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Kind and reason of what a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return answer_of(caught.value)[:2]


class Spoken:
    """The requests of a stream, said one by one."""

    def __init__(self) -> None:
        self._said: queue.Queue[Any] = queue.Queue()

    def say(self, message: Any) -> None:
        self._said.put(message)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._said.get, None)


# ---- a stream of answers


def test_the_answers_of_a_guarded_stream_arrive(
    grpc_service: Grpc, account: OwnAccount, secret: str, project_id: str
) -> None:
    request = pb.ReadLogRequest(job=pb.Job(project_id=project_id))
    lines = grpc_service.stub.ReadLog(request, metadata=bearer(secret), timeout=TIMEOUT_S)
    # The last one is made after the first was sent, and still knows for whom.
    assert [line.text for line in lines] == [
        f"{project_id}: started",
        f"{project_id}: ended, for {account.account_id}",
    ]


@pytest.mark.parametrize("job", [None, pb.Job(job_id="1")])
def test_a_field_that_is_not_set_names_nothing(grpc_service: Grpc, secret: str, job: pb.Job | None) -> None:
    call = grpc_service.stub.ReadLog(pb.ReadLogRequest(job=job), metadata=bearer(secret), timeout=TIMEOUT_S)
    assert refusal(lambda: list(call)) == ("unclear", "RESOURCE_UNCLEAR")


# ---- the id in the first message


def upload(service: Grpc, metadata: Metadata, *project_ids: str) -> pb.UploadLogResponse:
    messages = [pb.UploadLogRequest(project_id=project_id, text="x") for project_id in project_ids]
    return service.stub.UploadLog(iter(messages), metadata=metadata, timeout=TIMEOUT_S)


def test_the_handler_gets_every_message_the_first_among_them(grpc_service: Grpc, secret: str, project_id: str) -> None:
    assert upload(grpc_service, bearer(secret), project_id, "", project_id).lines == 3


def test_a_later_message_may_name_no_other_project(
    grpc_service: Grpc, account: OwnAccount, secret: str, project_id: str
) -> None:
    other = account.project_ids[1]
    assert refusal(lambda: upload(grpc_service, bearer(secret), project_id, other)) == ("denied", "RESOURCE_CHANGED")
    assert refusal(lambda: upload(grpc_service, bearer(secret), other, project_id)) == (
        "denied",
        "PROJECT_NOT_GRANTED",
    )


@pytest.mark.parametrize("project_ids", [(), ("",), ("", "p"), ("no id",)])
def test_a_stream_whose_first_message_names_nothing_is_refused(
    grpc_service: Grpc, secret: str, project_ids: tuple[str, ...]
) -> None:
    assert refusal(lambda: upload(grpc_service, bearer(secret), *project_ids)) == ("unclear", "RESOURCE_UNCLEAR")


@pytest.mark.parametrize("headers", [0, 2])
def test_a_stream_without_one_credential_is_refused_before_it_says_anything(
    grpc_service: Grpc, secret: str, headers: int
) -> None:
    silent = Spoken()
    call = grpc_service.stub.UploadLog.future(iter(silent), metadata=bearer(secret) * headers, timeout=TIMEOUT_S)
    assert refusal(call.result)[0] == "unauthenticated"
    silent.say(None)


def test_a_stream_with_a_mistyped_secret_is_refused_before_it_says_anything(grpc_service: Grpc, secret: str) -> None:
    silent = Spoken()
    call = grpc_service.stub.UploadLog.future(iter(silent), metadata=bearer(mistyped(secret)), timeout=TIMEOUT_S)
    assert refusal(call.result) == ("unauthenticated", "CREDENTIAL_MALFORMED")
    silent.say(None)


# ---- the id in the metadata


def follow(service: Grpc, metadata: Metadata, requests: Iterator[Any]) -> Any:
    return service.stub.FollowJobs(requests, metadata=metadata, timeout=TIMEOUT_S)


def test_a_stream_that_is_named_in_its_metadata_may_begin_in_silence(
    grpc_service: Grpc, secret: str, project_id: str
) -> None:
    spoken = Spoken()
    call = follow(grpc_service, (*bearer(secret), ("project-id", project_id)), iter(spoken))
    for job_id in ("1", "2"):
        spoken.say(pb.FollowJobsRequest(job_id=job_id))
        assert next(call).job.job_id == job_id
    spoken.say(None)
    assert list(call) == []


@pytest.mark.parametrize("count", [0, 2])
def test_a_stream_names_one_project_in_its_metadata(
    grpc_service: Grpc, secret: str, project_id: str, count: int
) -> None:
    metadata = (*bearer(secret), *((("project-id", project_id),) * count))
    assert refusal(lambda: next(follow(grpc_service, metadata, iter(())))) == ("unclear", "RESOURCE_UNCLEAR")


def test_a_stream_of_another_project_is_refused_before_it_says_anything(
    grpc_service: Grpc, account: OwnAccount, secret: str
) -> None:
    silent = Spoken()
    call = follow(grpc_service, (*bearer(secret), ("project-id", account.project_ids[1])), iter(silent))
    assert refusal(lambda: next(call)) == ("denied", "PROJECT_NOT_GRANTED")
    silent.say(None)


def test_a_handler_can_end_a_stream_that_has_outlived_its_token(
    grpc_service: Grpc, account: OwnAccount, project_id: str
) -> None:
    issued = account.issue(on("job_admin", project_id))
    spoken = Spoken()
    call = follow(grpc_service, (*bearer(issued.secret), ("project-id", project_id)), iter(spoken))
    spoken.say(pb.FollowJobsRequest(job_id="1"))
    assert next(call).job.job_id == "1"

    account.revoke(issued.token.token_id)

    spoken.say(pb.FollowJobsRequest(job_id="2"))
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    spoken.say(None)
