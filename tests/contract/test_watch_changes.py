"""Every kind of change, as a watcher meets it: told and waited for when it touches what is held, and not at all otherwise."""

from __future__ import annotations

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from doorward.v1 import account_admin_pb2 as accounts_pb2
from doorward.v1 import system_admin_pb2 as system_pb2
from doorward.v1 import token_admin_pb2 as tokens_pb2
from doorward.v1.types_pb2 import (
    ACCOUNT_STATE_DELETED,
    ACCOUNT_STATE_SUSPENDED,
    OPERATOR_ROLE_CALLER,
    ServiceToken,
)
from doorward_server.catalog.load import builtin_text
from tests.support.server import bearer
from tests.support.watching import Watching, keys_of
from tests.support.wire import OwnAccount, an_account, another_of, ask, on, on_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.rows import Rows
    from tests.support.server import ServerProcess, Stubs


@dataclass(frozen=True)
class Place:
    """An account with a token that may do everything to itself, and three projects: two of them the token's, one nobody's."""

    account: OwnAccount
    token_id: str
    secret: str

    @property
    def stubs(self) -> Stubs:
        return self.account.stubs

    @property
    def new_project_id(self) -> str:
        """No project of this id is there yet."""
        return f"{self.account.account_id}-new"


def a_place(stubs: Stubs) -> Place:
    account = an_account(stubs, projects=2)
    issued = account.issue(on("job_admin", *account.project_ids), on_all("account_admin"), allow_self_rotation=True)
    return Place(account, issued.token.token_id, issued.secret)


@pytest.fixture
def place(stubs: Stubs) -> Place:
    """A new one."""
    return a_place(stubs)


@pytest.fixture
def watcher(stubs: Stubs) -> Iterator[Watching]:
    """A session of the caller's, with start and catalog taken and acknowledged."""
    with Watching(stubs) as watcher:
        yield watcher


def holds(watcher: Watching, place: Place) -> None:
    """All of the place, under a sub-lease."""
    watcher.granted()
    watcher.resolved(place.secret)
    watcher.resolved_project(place.new_project_id)
    watcher.acknowledge()


def of_account(rpc: str) -> Callable[[Place], Any]:
    def change(place: Place) -> Any:
        request = getattr(accounts_pb2, f"{rpc}Request")(account_id=place.account.account_id)
        return ask(getattr(place.stubs.accounts, rpc), request, place.stubs.admin)

    return change


def of_token(rpc: str, **fields: Any) -> Callable[[Place], Any]:
    def change(place: Place) -> Any:
        request = getattr(tokens_pb2, f"{rpc}Request")(token_id=place.token_id, **fields)
        return ask(getattr(place.stubs.tokens, rpc), request, place.stubs.admin)

    return change


def by_itself(rpc: str, **fields: Any) -> Callable[[Place], Any]:
    def change(place: Place) -> Any:
        request = getattr(tokens_pb2, f"{rpc}Request")(**fields)
        return ask(getattr(place.stubs.tokens, rpc), request, bearer(place.secret))

    return change


def lowers_the_plan(place: Place) -> Any:
    return place.account.set_plan("team")


def resumes(place: Place) -> Any:
    of_account("SuspendAccount")(place)
    return of_account("ResumeAccount")(place)


def puts_a_project(place: Place) -> Any:
    return place.account.put_project(place.new_project_id)


def deletes_a_project(place: Place) -> Any:
    request = accounts_pb2.DeleteProjectRequest(
        account_id=place.account.account_id, project_id=place.account.project_ids[0]
    )
    return ask(place.stubs.accounts.DeleteProject, request, place.stubs.admin)


def updates(place: Place) -> Any:
    token = ServiceToken(token_id=place.token_id, grants=[on_all("read_only")])
    request = tokens_pb2.UpdateTokenRequest(token=token, update_mask=FieldMask(paths=["grants"]))
    return ask(place.stubs.tokens.UpdateToken, request, place.stubs.admin)


def enables(place: Place) -> Any:
    of_token("DisableToken")(place)
    return of_token("EnableToken")(place)


def revokes_several(place: Place) -> Any:
    request = tokens_pb2.BatchRevokeTokensRequest(account_id=place.account.account_id, token_ids=[place.token_id])
    return ask(place.stubs.tokens.BatchRevokeTokens, request, place.stubs.admin)


def revokes_by_filter(place: Place) -> Any:
    request = tokens_pb2.RevokeTokensByFilterRequest(account_id=place.account.account_id, permission_set="job_admin")
    return ask(place.stubs.tokens.RevokeTokensByFilter, request, place.stubs.admin)


def reports_a_leak(place: Place) -> Any:
    return ask(place.stubs.tokens.ReportLeakedToken, tokens_pb2.ReportLeakedTokenRequest(secret=place.secret), ())


ACCOUNT, TOKEN, PROJECT, NEW_PROJECT = "account", "token", "a named project", "an unknown project"
# Each change with what it must be told of.
CHANGES: dict[str, tuple[Callable[[Place], Any], str]] = {
    "PutAccount": (lowers_the_plan, ACCOUNT),
    "SuspendAccount": (of_account("SuspendAccount"), ACCOUNT),
    "ResumeAccount": (resumes, ACCOUNT),
    "DeleteAccount": (of_account("DeleteAccount"), ACCOUNT),
    "PutProject": (puts_a_project, NEW_PROJECT),
    "DeleteProject": (deletes_a_project, PROJECT),
    "DeleteProject, of its token": (deletes_a_project, TOKEN),
    "UpdateToken": (updates, TOKEN),
    "RotateToken": (of_token("RotateToken", overlap=Duration(seconds=60)), TOKEN),
    "DisableToken": (of_token("DisableToken"), TOKEN),
    "EnableToken": (enables, TOKEN),
    "RevokeToken": (of_token("RevokeToken"), TOKEN),
    "BatchRevokeTokens": (revokes_several, TOKEN),
    "RevokeTokensByFilter": (revokes_by_filter, TOKEN),
    "ReportLeakedToken": (reports_a_leak, TOKEN),
    "RevokeSelf": (by_itself("RevokeSelf"), TOKEN),
    "RotateSelf": (by_itself("RotateSelf", overlap=Duration(seconds=60)), TOKEN),
}


def key_of(what: str, place: Place) -> str:
    return {
        ACCOUNT: f"account:{place.account.account_id}",
        TOKEN: f"token:{place.token_id}",
        PROJECT: f"project:{place.account.project_ids[0]}",
        NEW_PROJECT: f"project:{place.new_project_id}",
    }[what]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_what_is_held_is_told_and_waits_for_the_acknowledgement(
    place: Place, watcher: Watching, name: str
) -> None:
    change, what = CHANGES[name]
    holds(watcher, place)
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change, place)
        told: set[str] = set()
        while key_of(what, place) not in told:
            told |= keys_of(watcher.expect("evict").evict)
            assert not changing.done()
            watcher.acknowledge()
        # Of two changes, whatever comes second touches nothing that is held any more.
        answer = changing.result()

    if name != "ReportLeakedToken":
        assert answer.propagation.replicas_expired == 0
        assert answer.propagation.watchers_confirmed >= 1


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_what_is_not_held_is_not_told(stubs: Stubs, place: Place, watcher: Watching, name: str) -> None:
    change, _ = CHANGES[name]
    holds(watcher, place)

    change(a_place(stubs))

    # Whatever was to be told would stand before this.
    watcher.granted()


def creates_an_operator(place: Place) -> Any:
    request = system_pb2.CreateOperatorRequest(role=OPERATOR_ROLE_CALLER, display_name="another")
    return ask(place.stubs.system.CreateOperator, request, place.stubs.admin)


def revokes_an_operator(place: Place) -> Any:
    operator_id = creates_an_operator(place).operator.operator_id
    request = system_pb2.RevokeOperatorRequest(operator_id=operator_id)
    return ask(place.stubs.system.RevokeOperator, request, place.stubs.admin)


def issues(place: Place) -> Any:
    return place.account.issue(on_all("read_only"))


@pytest.mark.parametrize("change", [creates_an_operator, revokes_an_operator, issues])
def test_what_touches_nothing_that_anyone_can_hold_is_not_told(
    place: Place, watcher: Watching, change: Callable[[Place], Any]
) -> None:
    holds(watcher, place)
    assert change(place).propagation.replicas_expired == 0
    watcher.granted()


def test_a_catalog_that_is_applied_is_told_and_follows(stubs: Stubs, place: Place, watcher: Watching) -> None:
    holds(watcher, place)
    request = system_pb2.ApplyCatalogRequest(catalog=builtin_text())
    with ThreadPoolExecutor(1) as pool:
        applying = pool.submit(ask, stubs.system.ApplyCatalog, request, stubs.admin)
        evict = watcher.expect("evict").evict
        assert (evict.catalog, evict.everything, len(evict.keys)) == (True, False, 0)
        catalog = watcher.expect("catalog").catalog
        assert not applying.done()
        watcher.acknowledge()
        applied = applying.result()

    assert catalog.catalog_version == applied.catalog_version == watcher.catalog.catalog_version + 1
    assert applied.propagation.replicas_expired == 0
    # The token stayed held.
    with ThreadPoolExecutor(1) as pool:
        revoking = pool.submit(place.account.revoke, place.token_id)
        assert keys_of(watcher.expect("evict").evict) == {f"token:{place.token_id}"}
        watcher.acknowledge()
        revoking.result()


def test_a_secret_that_was_not_recognized_is_held_by_the_id_in_it(place: Place, watcher: Watching) -> None:
    watcher.granted()
    assert watcher.resolved(another_of(place.secret)).unrecognized.token_id == place.token_id
    with ThreadPoolExecutor(1) as pool:
        revoking = pool.submit(place.account.revoke, place.token_id)
        assert keys_of(watcher.expect("evict").evict) == {f"token:{place.token_id}"}
        assert not revoking.done()
        watcher.acknowledge()
        assert revoking.result().propagation.replicas_expired == 0


# ---- what a snapshot says behind a change


def test_the_state_of_the_account_is_told(stubs: Stubs, watcher: Watching) -> None:
    suspended, deleted = a_place(stubs), a_place(stubs)
    of_account("SuspendAccount")(suspended)
    of_account("DeleteAccount")(deleted)

    assert watcher.resolved(suspended.secret).token.account.state == ACCOUNT_STATE_SUSPENDED
    assert watcher.resolved(deleted.secret).token.account.state == ACCOUNT_STATE_DELETED


def test_a_disabled_token_and_an_expiry_are_told(place: Place, watcher: Watching) -> None:
    of_token("DisableToken")(place)
    expiring = place.account.issue(on_all("read_only"), ttl=Duration(seconds=3600))

    assert watcher.resolved(place.secret).token.disabled
    assert not watcher.resolved(place.secret).token.HasField("expire_time")
    told = watcher.resolved(expiring.secret).token
    assert not told.disabled
    assert told.expire_time == expiring.token.expire_time


def test_both_secrets_of_an_overlap_are_told_by_version(place: Place, watcher: Watching) -> None:
    rotated = of_token("RotateToken", overlap=Duration(seconds=3600))(place)

    former, current = watcher.resolved(place.secret).token, watcher.resolved(rotated.secret).token

    assert (former.secret_version, current.secret_version) == (1, 2)
    assert former.secrets == current.secrets
    ends = {secret.version: secret.HasField("expire_time") for secret in current.secrets}
    assert ends == {1: True, 2: False}


def test_a_secret_whose_overlap_was_none_is_unrecognized(place: Place, watcher: Watching) -> None:
    of_token("RotateToken", overlap=Duration())(place)
    assert watcher.resolved(place.secret).unrecognized.token_id == place.token_id


# ---- what is never told


def test_no_response_has_a_byte_of_a_secret_a_digest_or_a_hash(
    server: ServerProcess, place: Place, watcher: Watching, rows: Rows
) -> None:
    holds(watcher, place)
    wrong = another_of(place.secret)
    watcher.resolved(wrong)
    rotated = of_token("RotateToken", overlap=Duration(seconds=3600))
    with ThreadPoolExecutor(1) as pool:
        rotating = pool.submit(rotated, place)
        watcher.expect("evict")
        watcher.acknowledge()
        current = rotating.result().secret
    watcher.resolved(place.secret)
    watcher.resolved(current)
    watcher.resolve("x" * 200 + place.secret)
    watcher.expect("failure")
    seen = b"\n".join(watcher.seen)

    stored = rows.fetch("SELECT digest, bcrypt_hash FROM token_secrets") + rows.fetch(
        "SELECT digest, bcrypt_hash FROM operators"
    )
    assert len(stored) > 2
    forbidden = {secret.rpartition("_")[2].encode() for secret in (place.secret, current, wrong)}
    for digest, bcrypt_hash in stored:
        forbidden |= {digest, digest.hex().encode(), base64.b64encode(digest), bcrypt_hash.encode()}
    assert [found for found in forbidden if found in seen] == []
    assert re.search(rb"\$2[aby]\$", seen) is None
    logged = server.log.read_bytes()
    assert [found for found in forbidden if found in logged] == []
