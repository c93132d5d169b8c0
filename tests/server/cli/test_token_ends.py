"""What `doorward token list` and `token revoke` make of their options, and that a report of a leak carries no credential."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import token_admin_pb2 as pb
from doorward.v1 import types_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tests.server.cli.conftest import PlayedServer

FILTERS = (
    "--account", "acme", "--state", "disabled", "--permission-set", "job_admin", "--project", "p1", "--label", "team=data",
    "--label", "env=", "--created-by", "operator:O", "--unused-since", "2026-01-01T00:00:00Z", "--expires-before",
    "2027-01-01T00:00:00+01:00", "--display-name-prefix", "n",
)  # fmt: skip


def answering(played: PlayedServer, path: str, answer: Message) -> None:
    played.answers[f"TokenAdmin/{path}"] = lambda _request, _context: answer


def test_every_filter_of_a_list_is_asked_as_it_is_given(played: PlayedServer) -> None:
    answering(played, "ListTokens", pb.ListTokensResponse())
    assert played.run("token", "list", *FILTERS).exit_code == 0
    asked = pb.ListTokensRequest.FromString(played.asked[0][1])
    expected = pb.ListTokensRequest(
        account_id="acme",
        page_size=100,
        state=types_pb2.TOKEN_STATE_DISABLED,
        permission_set="job_admin",
        project_id="p1",
        labels={"team": "data", "env": ""},
        created_by="operator:O",
        display_name_prefix="n",
    )
    expected.unused_since.FromJsonString("2026-01-01T00:00:00Z")
    expected.expires_before.FromJsonString("2026-12-31T23:00:00Z")
    assert asked == expected


def test_every_filter_of_a_revocation_is_asked_as_it_is_given(played: PlayedServer) -> None:
    answering(played, "RevokeTokensByFilter", pb.RevokeTokensByFilterResponse())
    more = ("--obtained-by", "T", "--descendants", "--reason", "leaked", "--dry-run")
    assert played.run("token", "revoke", *FILTERS, *more).exit_code == 0
    asked = pb.RevokeTokensByFilterRequest.FromString(played.asked[0][1])
    assert (asked.obtained_by, asked.include_descendants, asked.reason) == ("T", True, "leaked")
    assert (asked.validate_only, asked.all_tokens, asked.state) == (True, False, types_pb2.TOKEN_STATE_DISABLED)
    assert (dict(asked.labels), asked.permission_set, asked.project_id) == (
        {"team": "data", "env": ""},
        "job_admin",
        "p1",
    )


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        (("T",), ["RevokeToken"]),
        (("T", "--account", "acme"), ["BatchRevokeTokens"]),
        (("T", "U"), ["GetToken", "BatchRevokeTokens"]),
        (("T", "--dry-run"), ["GetToken", "BatchRevokeTokens"]),
        (("--account", "acme", "--all"), ["RevokeTokensByFilter"]),
    ],
)
def test_revoking_calls_what_it_takes(played: PlayedServer, arguments: tuple[str, ...], paths: list[str]) -> None:
    token = types_pb2.ServiceToken(token_id="T", account_id="acme")
    answering(played, "RevokeToken", pb.RevokeTokenResponse(token=token))
    answering(played, "GetToken", pb.GetTokenResponse(token=token))
    answering(played, "BatchRevokeTokens", pb.BatchRevokeTokensResponse(tokens=[token]))
    answering(played, "RevokeTokensByFilter", pb.RevokeTokensByFilterResponse())

    assert played.run("token", "revoke", *arguments, "--reason", "why").exit_code == 0

    assert [path.partition("/")[2] for path, _, _ in played.asked] == paths
    if "BatchRevokeTokens" in paths:
        asked = pb.BatchRevokeTokensRequest.FromString(played.asked[-1][1])
        assert (asked.account_id, asked.reason, asked.validate_only) == ("acme", "why", "--dry-run" in arguments)
        assert list(asked.token_ids) == [argument for argument in arguments if argument in {"T", "U"}]


def test_a_report_sends_the_secret_and_no_credential(played: PlayedServer) -> None:
    answering(played, "ReportLeakedToken", pb.ReportLeakedTokenResponse())
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    result = played.run("token", "report-leak", given=f"{secret}\n")
    assert result.exit_code == 0
    ((_, request, authorization),) = played.asked
    assert (pb.ReportLeakedTokenRequest.FromString(request).secret, authorization) == (secret, "")
    assert secret not in result.output
