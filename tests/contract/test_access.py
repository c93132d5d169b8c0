"""Who may call what: every RPC of the contract with every kind of caller, read off design section 5, not off the table."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from doorward.v1.token_admin_pb2 import IssueTokenRequest
from doorward_server.api.access import TABLE
from doorward_server.api.wrapper import Binder
from tests.support.server import bearer, clean_environment
from tests.support.wire import (
    OwnAccount,
    Refusal,
    Rpc,
    an_account,
    every_rpc,
    on_all,
    raw_stream,
    refusal_of,
    refused,
)

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import Metadata

RPCS = {rpc.name: rpc for rpc in every_rpc()}

ANYBODY = {"TokenAdmin.ReportLeakedToken"}
ITSELF = {"TokenAdmin.DescribeSelf", "TokenAdmin.RevokeSelf", "TokenAdmin.RotateSelf"}
READS = {
    "AccountAdmin.GetAccount",
    "AccountAdmin.ListAccounts",
    "AccountAdmin.ListProjects",
    "AccountAdmin.PreviewPlanChange",
    "TokenAdmin.GetToken",
    "TokenAdmin.ListTokens",
    "TokenAdmin.ListPermissionSets",
    "TokenAdmin.ListAuditEvents",
    "TokenAdmin.AwaitPropagation",
    "SystemAdmin.GetCatalog",
    "SystemAdmin.PreviewCatalog",
    "SystemAdmin.ListOperators",
    "SystemAdmin.ListReplicas",
}
ASKS = {name for name in RPCS if name.startswith("Authorizer.")}
# Tells of tokens whose secret the caller was not shown.
ASKS_OF_READERS = {"Authorizer.ListTokensWithPermission"}
# These a token may call too that may read tokens; which way of asking ExplainCheck is open to whom, test_explain.py sees.
ASKS_OF_TOKENS = ASKS_OF_READERS | {"Authorizer.ExplainCheck"}
EVERY = set(RPCS)

# Reads of TokenAdmin need service_tokens:read, its changes service_tokens:write; a token has no part in anything else.
READS_TOKENS = {name for name in READS if name.startswith("TokenAdmin.")}
CHANGES_TOKENS = {name for name in RPCS if name.startswith("TokenAdmin.")} - READS_TOKENS - ITSELF - ANYBODY

MAY: dict[str, set[str]] = {
    "nobody": ANYBODY,
    "caller": ANYBODY | (ASKS - ASKS_OF_READERS),
    "auditor": ANYBODY | READS | ASKS,
    "admin": EVERY - ITSELF,
    "token that writes": ANYBODY | ITSELF | READS_TOKENS | ASKS_OF_TOKENS | CHANGES_TOKENS,
    "token that reads": ANYBODY | ITSELF | READS_TOKENS | ASKS_OF_TOKENS,
    "token without": ANYBODY | ITSELF,
}


def operator_credential(server: ServerProcess, role: str) -> str:
    """A new operator's credential, made on the running server's database."""
    options = ["--role", role, "--display-name", f"test {role}", "--data-dir", str(server.data_dir), "--json"]
    made = subprocess.run(
        [sys.executable, "-m", "doorward_server.cli.main", "operator", "create", "--direct", *options],
        env=clean_environment(),
        capture_output=True,
        check=False,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.partition('"secret": "')[2].partition('"')[0]


@dataclass(frozen=True)
class Callers:
    """Every kind of caller; a token is a new one each time, for one of the RPCs ends it."""

    stubs: Stubs
    auditor: Metadata
    account: OwnAccount

    def metadata(self, who: str) -> Metadata:
        """What it presents."""
        of_operators = {"nobody": (), "caller": self.stubs.caller, "auditor": self.auditor, "admin": self.stubs.admin}
        if who in of_operators:
            return of_operators[who]
        permission_set = {
            "token that writes": "account_admin",
            "token that reads": "account_viewer",
            "token without": "job_admin",
        }[who]
        return bearer(self.account.issue(on_all(permission_set), allow_self_rotation=True).secret)


@pytest.fixture(scope="module")
def callers(server: ServerProcess, stubs: Stubs) -> Callers:
    """Those of this module."""
    return Callers(stubs, bearer(operator_credential(server, "auditor")), an_account(stubs, projects=0))


def outcome(stubs: Stubs, rpc: Rpc, metadata: Any) -> Refusal | None:
    """What an empty request is refused with; None: it was answered."""
    try:
        list(raw_stream(stubs.channel, rpc.path)(iter([b""]), metadata=metadata, timeout=20))
    except grpc.RpcError as error:
        return refusal_of(error)
    return None


def test_the_sets_of_this_test_are_all_in_the_contract() -> None:
    for names in (ANYBODY, ITSELF, READS, ASKS_OF_READERS, ASKS_OF_TOKENS):
        assert names <= EVERY
    assert len(CHANGES_TOKENS) == 8
    assert len(EVERY) == 42


def test_every_rpc_is_in_the_access_table() -> None:
    assert set(TABLE) == {rpc.path for rpc in RPCS.values()}


def test_an_rpc_that_is_not_in_the_access_table_cannot_be_served() -> None:
    binder = Binder(cast("Any", None))

    with pytest.raises(KeyError):
        binder.method("/doorward.v1.TokenAdmin/NotInTheTable", IssueTokenRequest, cast("Any", None))


@pytest.mark.parametrize("who", MAY)
@pytest.mark.parametrize("name", RPCS)
def test_who_may_call_what(stubs: Stubs, callers: Callers, name: str, who: str) -> None:
    rpc = RPCS[name]

    refusal = outcome(stubs, rpc, callers.metadata(who))

    if name not in MAY[who]:
        assert refusal is not None
        if who == "nobody":
            assert (refusal.code, refusal.reason, refusal.metadata) == ("UNAUTHENTICATED", "CREDENTIAL_MISSING", {})
        else:
            assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")
            assert refusal.metadata == {"method": rpc.path}
    else:
        # An empty request: it works, or its fields are bad.
        assert refusal is None or refusal.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("who", ["caller", "auditor", "token that reads", "token without"])
def test_who_may_not_change_anything_changes_nothing(
    stubs: Stubs, callers: Callers, rows: Rows, account: OwnAccount, who: str
) -> None:
    metadata = callers.metadata(who)
    before = rows.footprint()

    refusals = [
        refused(stubs.tokens.IssueToken, account.wanted(on_all("member"), validate_only=only), metadata)
        for only in (False, True)
    ]

    assert {refusal.code for refusal in refusals} == {"PERMISSION_DENIED"}
    assert rows.footprint() == before


def test_a_denied_caller_learns_nothing_of_what_there_is(stubs: Stubs, account: OwnAccount) -> None:
    there = refused(stubs.tokens.IssueToken, account.wanted(on_all("member")), stubs.caller)
    not_there = refused(
        stubs.tokens.IssueToken,
        OwnAccount(stubs, "nobody", ()).wanted(on_all("no_such_set"), display_name=""),
        stubs.caller,
    )

    assert there == not_there


def test_an_operator_made_on_the_database_can_ask_at_once(stubs: Stubs, server: ServerProcess) -> None:
    metadata = bearer(operator_credential(server, "caller"))

    refusal = outcome(stubs, RPCS["Authorizer.Check"], metadata)

    assert refusal is not None
    assert refusal.code == "INVALID_ARGUMENT"
