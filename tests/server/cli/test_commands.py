"""Each command that calls a server: what it asks, what it prints, how it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from google.protobuf import duration_pb2

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import account_admin_pb2, authorizer_pb2, system_admin_pb2, token_admin_pb2, types_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message

    from tests.server.cli.conftest import PlayedServer

PROPAGATION = types_pb2.Propagation(revision="1.7", replicas_confirmed=1)
ISSUE = ("token", "issue", "--account", "acme", "--display-name", "nightly", "--grant", "job_admin:*")


def answering(played: PlayedServer, path: str, message: Message) -> None:
    played.answers[path] = lambda _request, _context: message


def issued() -> token_admin_pb2.IssueTokenResponse:
    secret = generate(SecretKind.TOKEN, new_id())
    token = types_pb2.ServiceToken(token_id=secret.subject_id, account_id="acme", display_name="nightly")
    return token_admin_pb2.IssueTokenResponse(token=token, secret=secret.reveal(), propagation=PROPAGATION)


def test_issue_asks_for_what_its_options_say(played: PlayedServer) -> None:
    answering(played, "TokenAdmin/IssueToken", issued())
    more = (
        "--grant",
        "metadata_only:p1,p2",
        "--ttl",
        "90d",
        "--label",
        "team=data",
        "--label",
        "env=",
        "--validate-only",
    )
    assert played.run(*ISSUE, *more, "--description", "why", "--allow-self-rotation").exit_code == 0
    assert token_admin_pb2.IssueTokenRequest.FromString(played.asked[0][1]) == token_admin_pb2.IssueTokenRequest(
        account_id="acme",
        display_name="nightly",
        description="why",
        labels={"team": "data", "env": ""},
        grants=[
            types_pb2.Grant(permission_set="job_admin", all_projects=True),
            types_pb2.Grant(permission_set="metadata_only", project_ids=["p1", "p2"]),
        ],
        ttl=duration_pb2.Duration(seconds=7_776_000),
        allow_self_rotation=True,
        validate_only=True,
    )


def test_issue_prints_the_secret_once(played: PlayedServer) -> None:
    answer = issued()
    answering(played, "TokenAdmin/IssueToken", answer)
    result = played.run(*ISSUE)
    assert result.output.count(answer.secret) == 1
    assert f"Secret: {answer.secret}\n" in result.stdout
    assert "True everywhere: revision 1.7" in result.stdout


def test_issue_gives_programs_the_whole_answer(played: PlayedServer) -> None:
    answer = issued()
    answering(played, "TokenAdmin/IssueToken", answer)
    assert json.loads(played.run(*ISSUE, "--json").stdout)["secret"] == answer.secret


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_secret_that_goes_into_a_file_is_not_printed(
    played: PlayedServer, own_directory: Path, form: tuple[str, ...]
) -> None:
    answer = issued()
    answering(played, "TokenAdmin/IssueToken", answer)
    result = played.run(*ISSUE, "--secret-file", "kept", *form)
    assert (own_directory / "kept").read_text().strip() == answer.secret
    assert answer.secret not in result.output
    assert answer.token.token_id in result.stdout


def test_a_refused_issue_leaves_no_file(played: PlayedServer, own_directory: Path) -> None:
    assert played.run(*ISSUE, "--secret-file", "kept").exit_code == 2
    assert not (own_directory / "kept").exists()


def test_a_file_that_exists_is_told_before_a_token_is_issued(played: PlayedServer, own_directory: Path) -> None:
    answering(played, "TokenAdmin/IssueToken", issued())
    (own_directory / "kept").write_text("precious")
    assert played.run(*ISSUE, "--secret-file", "kept").exit_code == 2
    assert not played.asked


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--ttl", "90"), "--ttl"),
        (("--expire-time", "2027-01-01"), "--expire-time"),
        (("--ttl", "1d", "--expire-time", "2027-01-01T00:00:00Z"), "--expire-time"),
        (("--label", "team"), "--label"),
        (("--label", "a=1", "--label", "a=2"), "--label"),
        (("--grant", "x:"), "--grant"),
        (("--limit", "1"), "--limit"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_sent(
    played: PlayedServer, arguments: tuple[str, ...], option: str
) -> None:
    answering(played, "TokenAdmin/IssueToken", issued())
    result = played.run(*ISSUE, *arguments)
    assert result.exit_code == 2
    assert option in result.stderr
    assert not played.asked


def test_show_tells_what_an_administrator_wants_to_see(played: PlayedServer) -> None:
    token = types_pb2.ServiceToken(
        token_id="T" * 16,
        account_id="acme",
        display_name="evil\x1b[2J",
        description="why",
        state=types_pb2.TOKEN_STATE_REVOKED,
        created_by="operator:O",
        revoke_reason="left",
        labels={"team": "data"},
        grants=[
            types_pb2.Grant(permission_set="job_admin", all_projects=True),
            types_pb2.Grant(permission_set="job_runner", project_ids=["p1"], suspended=True),
        ],
    )
    token.create_time.FromJsonString("2026-11-24T00:00:00Z")
    token.revoke_time.FromJsonString("2026-11-25T00:00:00Z")
    answering(played, "TokenAdmin/GetToken", token_admin_pb2.GetTokenResponse(token=token))
    lines = played.run("token", "show", "T" * 16).stdout.splitlines()
    expected = {
        "Token": "T" * 16,
        "Name": "evil\\x1b[2J",
        "State": "REVOKED",
        "Grants": "job_admin:*",
        "Expires": "never",
        "Last": "used    never",
        "Created": "2026-11-24 00:00:00Z",
        "Revoked": "2026-11-25 00:00:00Z",
        "Reason": "left",
        "Labels": "team=data",
    }
    found = {line.split()[0]: line.split(maxsplit=1)[1] for line in reversed(lines) if len(line.split()) > 1}
    assert {name: found.get(name) for name in expected} == expected
    assert "job_runner:p1 (suspended)" in [line.strip() for line in lines]
    assert any("operator:O" in line for line in lines)


@pytest.mark.parametrize("state", ["active", "disabled", "expired", "revoked"])
def test_a_list_can_be_narrowed_to_a_state(played: PlayedServer, state: str) -> None:
    answering(played, "TokenAdmin/ListTokens", token_admin_pb2.ListTokensResponse())
    assert played.run("token", "list", "--account", "acme", "--state", state).exit_code == 0
    asked = token_admin_pb2.ListTokensRequest.FromString(played.asked[0][1])
    assert types_pb2.TokenState.Name(asked.state) == f"TOKEN_STATE_{state.upper()}"


CHECK = ("check", "--permission", "jobs:write")


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (
            authorizer_pb2.CheckResponse(allowed=True, token_id="T", account_id="acme", revision="1.7"),
            0,
            "allowed (token T",
        ),
        (
            authorizer_pb2.CheckResponse(reason=types_pb2.DENY_REASON_PROJECT_NOT_GRANTED, token_id="T"),
            1,
            "denied: PROJECT_NOT_GRANTED",
        ),
        (
            authorizer_pb2.CheckResponse(reason=types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED, revision="1.7"),
            1,
            "denied: TOKEN_UNRECOGNIZED",
        ),
        (authorizer_pb2.CheckResponse(), 1, "denied"),
    ],
)
def test_check_ends_with_0_for_allowed_and_1_for_denied(
    played: PlayedServer, answer: authorizer_pb2.CheckResponse, code: int, said: str
) -> None:
    answering(played, "Authorizer/Check", answer)
    for form in ((), ("--json",)):
        assert played.run(*CHECK, "--project", "p1", *form, given="s").exit_code == code
    assert played.run(*CHECK, "--project", "p1", given="s").stdout.startswith(said)


def test_check_ends_with_2_for_an_error(played: PlayedServer) -> None:
    assert played.run(*CHECK, "--project", "p1", given="s").exit_code == 2


@pytest.mark.parametrize("resource", [(), ("--project", "p1", "--account", "acme")])
def test_check_is_about_exactly_one_resource(played: PlayedServer, resource: tuple[str, ...]) -> None:
    result = played.run(*CHECK, *resource, given="s")
    assert result.exit_code == 2
    assert "--project" in result.stderr
    assert "--account" in result.stderr


def test_an_empty_id_is_sent_as_one_and_left_to_the_server(played: PlayedServer) -> None:
    answering(played, "Authorizer/Check", authorizer_pb2.CheckResponse(allowed=True))
    played.run(*CHECK, "--project", "", given="s")
    assert authorizer_pb2.CheckRequest.FromString(played.asked[0][1]).WhichOneof("resource") == "project_id"


def test_check_demands_the_freshness_that_was_asked_for(played: PlayedServer) -> None:
    answering(played, "Authorizer/Check", authorizer_pb2.CheckResponse(allowed=True))
    played.run(*CHECK, "--account", "acme", "--at-least-as-fresh", "1.7", given="s")
    played.run(*CHECK, "--account", "acme", "--fully-consistent", given="s")
    asked = [authorizer_pb2.CheckRequest.FromString(request) for _, request, _ in played.asked]
    assert [one.consistency for one in asked] == [
        types_pb2.Consistency(at_least_as_fresh="1.7"),
        types_pb2.Consistency(fully_consistent=True),
    ]
    assert [one.account_id for one in asked] == ["acme", "acme"]


def test_two_freshnesses_are_refused(played: PlayedServer) -> None:
    result = played.run(*CHECK, "--account", "a", "--at-least-as-fresh", "1.7", "--fully-consistent", given="s")
    assert result.exit_code == 2
    assert "--fully-consistent" in result.stderr


def test_permissions_are_one_a_line(played: PlayedServer) -> None:
    answer = authorizer_pb2.ListPermissionsResponse(permissions=["jobs:read", "jobs:write"], usable=True)
    answering(played, "Authorizer/ListPermissions", answer)
    result = played.run("permissions", "--project", "p1", given="s")
    assert (result.stdout, result.stderr) == ("jobs:read\njobs:write\n", "")
    assert authorizer_pb2.ListPermissionsRequest.FromString(played.asked[0][1]).project_id == "p1"


def test_a_token_that_cannot_be_used_has_no_permissions_and_the_reason_is_told(played: PlayedServer) -> None:
    answer = authorizer_pb2.ListPermissionsResponse(reason=types_pb2.DENY_REASON_TOKEN_REVOKED)
    answering(played, "Authorizer/ListPermissions", answer)
    result = played.run("permissions", given="s")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "TOKEN_REVOKED" in result.stderr
    assert not authorizer_pb2.ListPermissionsRequest.FromString(played.asked[0][1]).HasField("project_id")


def test_introspect_tells_nothing_of_an_unrecognized_secret(played: PlayedServer) -> None:
    answer = authorizer_pb2.IntrospectTokenResponse(reason=types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED, revision="1.7")
    answering(played, "Authorizer/IntrospectToken", answer)
    lines = played.run("introspect", given="s").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["Active", "Revision"]


def test_the_catalog_can_be_had_as_the_file_that_it_is(played: PlayedServer) -> None:
    text = 'schema = 1\nversion = "x"\n'
    answering(played, "SystemAdmin/GetCatalog", system_admin_pb2.GetCatalogResponse(catalog=text))
    assert played.run("catalog", "show", "--toml").stdout == text


def test_put_commands_ask_for_what_their_options_say(played: PlayedServer) -> None:
    answering(played, "AccountAdmin/PutAccount", account_admin_pb2.PutAccountResponse(propagation=PROPAGATION))
    answering(played, "AccountAdmin/PutProject", account_admin_pb2.PutProjectResponse())
    put = played.run("account", "put", "acme", "--display-name", "Acme", "--plan", "team")
    checked = played.run("project", "put", "p1", "--account", "acme", "--display-name", "P", "--validate-only")
    assert account_admin_pb2.PutAccountRequest.FromString(played.asked[0][1]) == account_admin_pb2.PutAccountRequest(
        account_id="acme", display_name="Acme", plan="team"
    )
    assert account_admin_pb2.PutProjectRequest.FromString(played.asked[1][1]) == account_admin_pb2.PutProjectRequest(
        account_id="acme", project_id="p1", display_name="P", validate_only=True
    )
    assert "True everywhere: revision 1.7" in put.stdout
    assert "nothing was written" in checked.stdout


def test_await_propagation_tells_how_far_the_change_has_reached(played: PlayedServer) -> None:
    answering(played, "TokenAdmin/AwaitPropagation", token_admin_pb2.AwaitPropagationResponse(propagation=PROPAGATION))
    assert "revision 1.7, confirmed by 1 replica" in played.run("await-propagation", "1.7").stdout
    assert token_admin_pb2.AwaitPropagationRequest.FromString(played.asked[0][1]).revision == "1.7"


def test_replicas_shows_whole_ids_and_the_logs_end(played: PlayedServer) -> None:
    replica = system_admin_pb2.Replica(replica_id="0b6f5f3e-4c38-4b27-9f0d-6a0c61d5b3aa", applied_revision="1.6", lag=1)
    answer = system_admin_pb2.ListReplicasResponse(replicas=[replica], revision="1.7")
    answering(played, "SystemAdmin/ListReplicas", answer)
    said = played.run("replicas").stdout
    assert "The log ends at 1.7" in said
    assert replica.replica_id in said
