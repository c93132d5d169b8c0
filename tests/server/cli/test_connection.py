"""The way to a server: where it may be, what is sent, pages, and how a failed call ends the command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from doorward.v1 import account_admin_pb2, token_admin_pb2, types_pb2
from tests.server.cli.conftest import run

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message

    from doorward.core.secret import Secret
    from tests.server.cli.conftest import PlayedServer


def many_accounts(total: int, played: PlayedServer) -> None:
    """Lets the server have this many accounts, in pages as long as was asked for."""

    def answer(request: bytes, _context: grpc.ServicerContext) -> Message:
        asked = account_admin_pb2.ListAccountsRequest.FromString(request)
        first = int(asked.page_token or "0")
        end = min(first + asked.page_size, total)
        accounts = [types_pb2.Account(account_id=f"a{number}", plan="team") for number in range(first, end)]
        return account_admin_pb2.ListAccountsResponse(
            accounts=accounts, next_page_token=str(end) if end < total else ""
        )

    played.answers["AccountAdmin/ListAccounts"] = answer


def refusing(played: PlayedServer, reason: str) -> None:
    """Lets GetAccount be refused as Doorward refuses."""

    def answer(_request: bytes, context: grpc.ServicerContext) -> Message:
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="doorward", metadata={"account_id": "acme"}))
        status = status_pb2.Status(code=5, message="there is no account 'acme'", details=[packed])
        context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError("abort_with_status raises")

    played.answers["AccountAdmin/GetAccount"] = answer


def test_the_credential_is_sent_as_bearer(played: PlayedServer, credential: Secret) -> None:
    many_accounts(1, played)
    assert played.run("account", "list").exit_code == 0
    assert played.asked[0][2] == f"Bearer {credential.reveal()}"


def test_pages_are_read_up_to_the_limit_and_more_is_told(played: PlayedServer) -> None:
    many_accounts(1200, played)
    result = played.run("account", "list", "--limit", "700")
    assert len(result.stdout.splitlines()) == 701
    assert "more than these 700" in result.stderr
    sizes = [account_admin_pb2.ListAccountsRequest.FromString(request).page_size for _, request, _ in played.asked]
    assert sizes == [500, 200]


def test_a_limit_of_0_reads_all_pages(played: PlayedServer) -> None:
    many_accounts(1200, played)
    result = played.run("account", "list", "--limit", "0", "--json")
    assert [account["account_id"] for account in json.loads(result.stdout)["accounts"]] == [
        f"a{n}" for n in range(1200)
    ]
    assert json.loads(result.stdout)["next_page_token"] == ""
    assert result.stderr == ""


def test_exactly_as_many_as_the_limit_is_no_more(played: PlayedServer) -> None:
    many_accounts(100, played)
    assert played.run("account", "list").stderr == ""


def test_an_empty_page_is_not_the_last(played: PlayedServer) -> None:
    pages = [
        token_admin_pb2.ListTokensResponse(next_page_token="1"),
        token_admin_pb2.ListTokensResponse(tokens=[types_pb2.ServiceToken(token_id="T", account_id="acme")]),
    ]
    played.answers["TokenAdmin/ListTokens"] = lambda _request, _context: pages.pop(0)
    assert played.run("token", "list", "--account", "acme").stdout.splitlines()[1].startswith("T ")


def test_a_refused_call_ends_with_2_reason_and_advice(played: PlayedServer) -> None:
    refusing(played, "ACCOUNT_NOT_FOUND")
    result = played.run("account", "get", "acme")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: NOT_FOUND (ACCOUNT_NOT_FOUND): there is no account 'acme'\nSee the ids with: doorward account list\n"
    )


def test_a_refused_call_is_json_for_programs(played: PlayedServer) -> None:
    refusing(played, "ACCOUNT_NOT_FOUND")
    result = played.run("account", "get", "acme", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert json.loads(result.stderr)["error"]["reason"] == "ACCOUNT_NOT_FOUND"


def test_a_status_that_is_not_ours_is_told_too(played: PlayedServer) -> None:
    result = played.run("account", "get", "acme")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: UNIMPLEMENTED: ")
    assert "no Doorward server" in result.stderr


def test_a_secret_in_another_servers_message_is_masked(played: PlayedServer, credential: Secret) -> None:
    def answer(_request: bytes, context: grpc.ServicerContext) -> Message:
        context.abort(grpc.StatusCode.INTERNAL, f"you sent Bearer {credential.reveal()}")
        raise AssertionError("abort raises")

    played.answers["AccountAdmin/GetAccount"] = answer
    for arguments in (("account", "get", "acme"), ("account", "get", "acme", "--json")):
        result = played.run(*arguments)
        assert result.exit_code == 2
        assert credential.reveal()[22:] not in result.output


def test_an_answer_that_does_not_come_ends_with_the_timeout(played: PlayedServer) -> None:
    def answer(_request: bytes, context: grpc.ServicerContext) -> Message:
        while context.is_active():
            context.time_remaining()
        return account_admin_pb2.GetAccountResponse()

    played.answers["AccountAdmin/GetAccount"] = answer
    result = played.run("account", "get", "acme", "--timeout", "0.2")
    assert result.exit_code == 2
    assert "DEADLINE_EXCEEDED" in result.stderr
    assert "--timeout" in result.stderr


def test_a_unix_socket_is_an_address_too(played: PlayedServer) -> None:
    many_accounts(1, played)
    result = run("account", "list", "--address", played.unix_address)
    assert result.exit_code == 0, result.stderr


def test_where_nobody_listens_the_address_is_named(own_directory: Path, credential: Secret) -> None:
    result = run("account", "list", "--address", f"unix:{own_directory}/nobody", DOORWARD_TOKEN=credential.reveal())
    assert result.exit_code == 2
    assert f"Nobody answers at unix:{own_directory}/nobody" in result.stderr
    assert "doorward serve" in result.stderr


@pytest.mark.parametrize(
    "address", ["localhost", "127.0.0.1:", ":50051", "127.0.0.1:70000", "127.0.0.1:0", "unix:", ""]
)
def test_what_is_no_address_is_refused_before_anything_is_sent(address: str, credential: Secret) -> None:
    result = run("account", "list", "--address", address, DOORWARD_TOKEN=credential.reveal())
    assert result.exit_code == 2
    assert "--address" in result.stderr


@pytest.mark.parametrize("address", ["10.0.0.7:50051", "example.com:50051", "dns:///localhost:50051", "0.0.0.0:50051"])
def test_no_credential_leaves_the_machine_in_the_clear_unasked(address: str, credential: Secret) -> None:
    result = run("account", "list", "--address", address, DOORWARD_TOKEN=credential.reveal())
    assert result.exit_code == 2
    assert "--insecure" in result.stderr


def test_a_proxy_is_never_used_for_this_machine(played: PlayedServer) -> None:
    many_accounts(1, played)
    result = played.run("account", "list", http_proxy="http://127.0.0.1:9", grpc_proxy="http://127.0.0.1:9")
    assert result.exit_code == 0, result.stderr


def test_wrong_input_is_told_before_the_missing_credential() -> None:
    result = run("token", "issue", "--account", "acme", "--display-name", "x", "--grant", "job_admin")
    assert result.exit_code == 2
    assert "--grant" in result.stderr
    assert "SET:*" in result.stderr
