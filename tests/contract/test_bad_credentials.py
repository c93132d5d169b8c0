"""Metadata that is no credential, or proves nobody: UNAUTHENTICATED from every kind of RPC, and nothing is repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1.token_admin_pb2 import DescribeSelfRequest, GetTokenRequest
from tests.support.server import bearer
from tests.support.wire import (
    OwnAccount,
    another_of,
    ask,
    check,
    code_of,
    eventually,
    every_rpc,
    mistyped,
    on_all,
    raw,
    raw_stream,
    refusal_of,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.rows import Rows
    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import Metadata

RPCS = {rpc.name: rpc for rpc in every_rpc()}
# One RPC of each kind: read in the database, decided from memory, a change, a list, a stream, a token's own.
KINDS = [
    "TokenAdmin.GetToken",
    "Authorizer.Check",
    "Authorizer.BatchCheck",
    "Authorizer.ListPermissions",
    "TokenAdmin.IssueToken",
    "SystemAdmin.ListReplicas",
    "TokenAdmin.UpdateToken",
    "Authorizer.Watch",
    "TokenAdmin.DescribeSelf",
]

PRESENTED: dict[str, tuple[Callable[[str], tuple[tuple[str, str], ...]], str]] = {
    "nothing": (lambda _: (), "CREDENTIAL_MISSING"),
    "an empty text": (lambda _: (("authorization", ""),), "CREDENTIAL_MISSING"),
    "another key": (lambda right: (("x-authorization", f"Bearer {right}"),), "CREDENTIAL_MISSING"),
    "Basic": (lambda _: (("authorization", "Basic YTpi"),), "CREDENTIAL_MALFORMED"),
    "Token": (lambda right: (("authorization", f"Token {right}"),), "CREDENTIAL_MALFORMED"),
    "no scheme": (lambda right: (("authorization", right),), "CREDENTIAL_MALFORMED"),
    "Bearer alone": (lambda _: (("authorization", "Bearer"),), "CREDENTIAL_MALFORMED"),
    "Bearer of nothing": (lambda _: (("authorization", "Bearer   "),), "CREDENTIAL_MALFORMED"),
    "Bearer of a word": (lambda _: bearer("letmein"), "CREDENTIAL_MALFORMED"),
    "two words": (lambda right: bearer(f"{right} {right}"), "CREDENTIAL_MALFORMED"),
    "given twice": (lambda right: bearer(right) * 2, "CREDENTIAL_MALFORMED"),
    "with another": (lambda right: (*bearer(right), ("authorization", "Basic x")), "CREDENTIAL_MALFORMED"),
    "cut off": (lambda right: bearer(right[:-1]), "CREDENTIAL_MALFORMED"),
    "one more": (lambda right: bearer(f"{right}0"), "CREDENTIAL_MALFORMED"),
    "mistyped": (lambda right: bearer(mistyped(right)), "CREDENTIAL_MALFORMED"),
    "as a token's": (lambda right: bearer(right.replace("dwop", "dwst")), "CREDENTIAL_MALFORMED"),
    "of nobody": (lambda _: bearer(generate(SecretKind.OPERATOR, new_id()).reveal()), "CREDENTIAL_UNRECOGNIZED"),
    "of no token": (lambda _: bearer(generate(SecretKind.TOKEN, new_id()).reveal()), "CREDENTIAL_UNRECOGNIZED"),
    "wrong": (lambda right: bearer(another_of(right)), "CREDENTIAL_UNRECOGNIZED"),
}


def refusal_for(stubs: Stubs, name: str, metadata: Any) -> Any:
    """What an RPC refuses an empty request with this metadata with."""
    rpc = RPCS[name]
    with pytest.raises(grpc.RpcError) as caught:
        list(raw_stream(stubs.channel, rpc.path)(iter([b""]), metadata=metadata, timeout=20))
    return refusal_of(caught.value)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("made", "reason"), PRESENTED.values(), ids=PRESENTED.keys())
def test_what_proves_nobody_is_unauthenticated(
    stubs: Stubs, server: ServerProcess, rows: Rows, name: str, made: Callable[[str], Metadata], reason: str
) -> None:
    before, metadata = rows.footprint(), made(server.operator_credential)

    refusal = refusal_for(stubs, name, metadata)

    assert (refusal.code, refusal.reason, refusal.domain) == ("UNAUTHENTICATED", reason, "doorward")
    assert (refusal.metadata, refusal.violations, refusal.retry_after_s) == ({}, (), None)
    assert not any(word[5:] in refusal.text for _, value in metadata for word in value.split() if len(word) > 12)
    assert rows.footprint() == before


def test_one_text_is_told_for_all_that_is_whole_and_proves_nobody(stubs: Stubs, server: ServerProcess) -> None:
    whole = [made(server.operator_credential) for made, reason in PRESENTED.values() if reason.endswith("UNRECOGNIZED")]

    texts = {refusal_for(stubs, name, metadata).text for name in KINDS for metadata in whole}

    assert len(whole) == 3
    assert len(texts) == 1


@pytest.mark.parametrize("length", [161, 1000, 7000, 10_000, 20_000])
def test_a_credential_that_is_far_too_long_is_refused(stubs: Stubs, length: int) -> None:
    rpc = RPCS["TokenAdmin.GetToken"]
    call = raw(stubs.channel, rpc.path)

    code = code_of(lambda: call(b"", metadata=bearer("x" * length), timeout=20))

    # Beyond 8 KiB of metadata grpc itself may refuse, beyond 16 it does.
    assert code in ({"UNAUTHENTICATED"} if length < 8000 else {"UNAUTHENTICATED", "RESOURCE_EXHAUSTED"})


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer    "])
def test_the_scheme_is_taken_in_any_case(stubs: Stubs, server: ServerProcess, scheme: str) -> None:
    metadata = (("authorization", f"{scheme}{server.operator_credential}"),)

    refusal = refused(stubs.tokens.GetToken, GetTokenRequest(token_id="nothing"), metadata)

    assert refusal.reason == "TOKEN_NOT_FOUND"


def test_a_revoked_tokens_secret_is_a_credential_of_nobody(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("account_admin"))
    request = GetTokenRequest(token_id=issued.token.token_id)
    own = bearer(issued.secret)
    ask(stubs.tokens.DescribeSelf, DescribeSelfRequest(), own)
    before = [refusal_for(stubs, name, own) for name in KINDS if name != "TokenAdmin.DescribeSelf"]

    account.revoke(issued.token.token_id)

    after = [refusal_for(stubs, name, own) for name in KINDS]
    assert {refusal.reason for refusal in before} == {"CALLER_NOT_PERMITTED", "INVALID_FIELDS"}
    assert {refusal.reason for refusal in after} == {"CREDENTIAL_UNRECOGNIZED"}
    assert ask(stubs.tokens.GetToken, request, stubs.admin).token.token_id == issued.token.token_id


def test_an_operator_that_is_revoked_in_the_database_can_call_no_administration(
    stubs: Stubs, server: ServerProcess, rows: Rows, account: OwnAccount
) -> None:
    """The authorization of a read or change comes from the database each time. (That of a check follows the change log.)"""
    operator_id = server.caller_credential.split("_")[1]
    request = GetTokenRequest(token_id="nothing")
    assert refused(stubs.tokens.GetToken, request, stubs.caller).reason == "CALLER_NOT_PERMITTED"

    rows.fetch("UPDATE operators SET expire_time = now() WHERE operator_id = $1", operator_id)
    try:
        refusal = refused(stubs.tokens.GetToken, request, stubs.caller)
    finally:
        rows.fetch("UPDATE operators SET expire_time = NULL WHERE operator_id = $1", operator_id)

    assert refusal.reason == "CREDENTIAL_UNRECOGNIZED"
    eventually(lambda: refused(stubs.tokens.GetToken, request, stubs.caller).reason == "CALLER_NOT_PERMITTED")


def test_a_wrong_credential_does_not_shut_out_the_right_one(stubs: Stubs, server: ServerProcess) -> None:
    for _ in range(30):
        refusal_for(stubs, "Authorizer.Check", bearer(another_of(server.caller_credential)))

    assert not check(stubs, "nonsense", "jobs:read", project_id="p").allowed
