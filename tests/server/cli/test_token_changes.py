"""`token update | rotate`: what they ask for, and what is said when nobody can tell whether a secret was made."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import types_pb2
from doorward.v1.token_admin_pb2 import (
    IssueTokenRequest,
    RotateTokenRequest,
    RotateTokenResponse,
    UpdateTokenRequest,
    UpdateTokenResponse,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tests.server.cli.conftest import PlayedServer

PROPAGATION = types_pb2.Propagation(revision="1.7", replicas_confirmed=1)
ISSUE = ("token", "issue", "--account", "acme", "--display-name", "nightly", "--grant", "job_admin:*")
ROTATE = ("token", "rotate", "t1", "--overlap", "1d12h")


def rotated() -> RotateTokenResponse:
    secret = generate(SecretKind.TOKEN, new_id())
    token = types_pb2.ServiceToken(token_id=secret.subject_id)
    return RotateTokenResponse(token=token, secret=secret.reveal(), propagation=PROPAGATION)


@pytest.mark.parametrize(
    ("options", "fields", "paths"),
    [
        (("--display-name", "n"), {"display_name": "n"}, ["display_name"]),
        (("--description", ""), {}, ["description"]),
        (("--label", "a=b", "--label", "c="), {"labels": {"a": "b", "c": ""}}, ["labels"]),
        (("--no-labels",), {}, ["labels"]),
        (("--never-expires",), {}, ["expire_time"]),
        (
            ("--expire-time", "1970-01-01T00:00:07Z", "--no-self-rotation", "--etag", '"7"'),
            {"expire_time": Timestamp(seconds=7), "etag": '"7"'},
            ["expire_time", "allow_self_rotation"],
        ),
        (
            ("--grant", "member:p1,p2", "--allow-self-rotation"),
            {
                "grants": [types_pb2.Grant(permission_set="member", project_ids=["p1", "p2"])],
                "allow_self_rotation": True,
            },
            ["grants", "allow_self_rotation"],
        ),
    ],
)
def test_update_names_what_its_options_say(
    played: PlayedServer, options: tuple[str, ...], fields: dict[str, object], paths: list[str]
) -> None:
    played.answers["TokenAdmin/UpdateToken"] = lambda _request, _context: UpdateTokenResponse(propagation=PROPAGATION)

    assert played.run("token", "update", "t1", *options).exit_code == 0

    asked = UpdateTokenRequest.FromString(played.asked[0][1])
    assert asked.token == types_pb2.ServiceToken(token_id="t1", **fields)  # type: ignore[arg-type]
    assert list(asked.update_mask.paths) == paths


def test_rotate_asks_for_what_its_options_say_with_a_random_id(played: PlayedServer) -> None:
    played.answers["TokenAdmin/RotateToken"] = lambda _request, _context: rotated()
    given = str(uuid.uuid4())

    for more in ((), (), ("--request-id", given), ("--validate-only",)):
        assert played.run(*ROTATE, *more).exit_code == 0

    asked = [RotateTokenRequest.FromString(request) for _, request, _ in played.asked]
    assert {(one.token_id, one.overlap.seconds) for one in asked} == {("t1", 129_600)}
    assert asked[0].request_id != asked[1].request_id
    assert [uuid.UUID(one.request_id).version for one in asked[:2]] == [4, 4]
    assert [one.request_id for one in asked[2:]] == [given, ""]
    assert [one.validate_only for one in asked] == [False, False, False, True]


def test_a_former_secret_that_still_works_is_told(played: PlayedServer) -> None:
    answer = rotated()
    answer.former_secret_expire_time.FromSeconds(7)
    played.answers["TokenAdmin/RotateToken"] = lambda _request, _context: answer

    assert "The former secret works until 1970-01-01 00:00:07Z." in played.run(*ROTATE).stdout


@pytest.mark.parametrize("command", [ISSUE, ROTATE], ids=["issue", "rotate"])
@pytest.mark.parametrize(
    ("code", "says_how_to_repeat"),
    [
        (grpc.StatusCode.UNAVAILABLE, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, True),
        (grpc.StatusCode.INTERNAL, True),
        (grpc.StatusCode.PERMISSION_DENIED, False),
        (grpc.StatusCode.INVALID_ARGUMENT, False),
    ],
)
def test_when_nobody_can_tell_whether_it_was_done_the_way_to_repeat_it_is_said(
    played: PlayedServer, command: tuple[str, ...], code: grpc.StatusCode, says_how_to_repeat: bool
) -> None:
    def fail(_request: bytes, context: grpc.ServicerContext) -> Message:
        context.abort(code, "no")

    played.answers["TokenAdmin/IssueToken"] = played.answers["TokenAdmin/RotateToken"] = fail

    ended = played.run(*command)
    as_json = played.run(*command, "--json")

    kind = IssueTokenRequest if command is ISSUE else RotateTokenRequest
    # What is unavailable gRPC tries again, under the same id.
    ids = list(dict.fromkeys(kind.FromString(request).request_id for _, request, _ in played.asked))
    assert (ended.exit_code, as_json.exit_code) == (2, 2)
    assert (f"--request-id {ids[0]}" in ended.stderr) is says_how_to_repeat
    assert json.loads(as_json.stderr)["error"]["request_id"] == ids[1]


def test_a_command_that_has_no_id_says_nothing_of_one(played: PlayedServer) -> None:
    def fail(_request: bytes, context: grpc.ServicerContext) -> Message:
        context.abort(grpc.StatusCode.UNAVAILABLE, "no")

    played.answers["TokenAdmin/DisableToken"] = fail

    ended = [played.run("token", "disable", "t1", *more) for more in ((), ("--json",))]

    assert not any("request-id" in one.stderr or "request_id" in one.stderr for one in ended)


def test_the_longest_overlap_is_sent_as_it_is_written(played: PlayedServer) -> None:
    played.answers["TokenAdmin/RotateToken"] = lambda _request, _context: rotated()

    played.run("token", "rotate", "t1", "--overlap", "30d")

    assert RotateTokenRequest.FromString(played.asked[0][1]).overlap == Duration(seconds=2_592_000)
