"""What the deployment says of itself over the wire: catalog, permission sets, replicas, propagation."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest

from doorward.core.revision import Revision
from doorward.v1 import system_admin_pb2
from doorward.v1.system_admin_pb2 import GetCatalogRequest, ListReplicasRequest
from doorward.v1.token_admin_pb2 import AwaitPropagationRequest, ListPermissionSetsRequest, PermissionSet
from tests.support import oracle
from tests.support.wire import OwnAccount, an_account, ask, fresh_id, on_all, refused

if TYPE_CHECKING:
    from tests.support.server import Stubs

BUILTIN = resources.files("doorward_server.catalog").joinpath("permission_sets.toml").read_text(encoding="utf-8")
DOCUMENT: dict[str, Any] = tomllib.loads(BUILTIN)


def permission_sets(stubs: Stubs, account: OwnAccount) -> dict[str, PermissionSet]:
    request = ListPermissionSetsRequest(account_id=account.account_id)
    listed = ask(stubs.tokens.ListPermissionSets, request, stubs.admin).permission_sets
    return {found.name: found for found in listed}


def test_the_catalog_is_the_builtin_file(stubs: Stubs) -> None:
    catalog = ask(stubs.system.GetCatalog, GetCatalogRequest(), stubs.admin)

    assert (catalog.catalog, catalog.catalog_version, catalog.label) == (BUILTIN, 1, DOCUMENT["version"])
    assert [(found.name, list(found.actions)) for found in catalog.resources] == [
        (name, about["actions"])
        for table in ("account_resources", "project_resources")
        for name, about in DOCUMENT[table].items()
    ]
    assert [found.name for found in catalog.permission_sets] == list(DOCUMENT["permission_sets"])
    assert [found.name for found in catalog.plans] == list(DOCUMENT["plans"])


def test_the_catalogs_messages_say_what_its_text_says(stubs: Stubs) -> None:
    catalog = ask(stubs.system.GetCatalog, GetCatalogRequest(), stubs.admin)

    levels = {found.name: found.level for found in catalog.resources}
    assert levels == {
        **dict.fromkeys(DOCUMENT["account_resources"], system_admin_pb2.PERMISSION_LEVEL_ACCOUNT),
        **dict.fromkeys(DOCUMENT["project_resources"], system_admin_pb2.PERMISSION_LEVEL_PROJECT),
    }
    assert {found.name: set(found.permissions) for found in catalog.permission_sets} == {
        name: oracle.permissions_in_set(DOCUMENT, name) for name in DOCUMENT["permission_sets"]
    }
    assert {found.name: set(found.permission_sets) for found in catalog.plans} == {
        name: oracle.covered_sets(DOCUMENT, name) for name in DOCUMENT["plans"]
    }
    assert [dict(found.set_titles) for found in catalog.plans] == [{"account_admin": "Owner"}, {}]


@pytest.mark.parametrize(("plan", "title"), [("team", "Owner"), ("enterprise", "Account Admin")])
def test_a_permission_set_has_the_title_that_the_accounts_plan_gives_it(stubs: Stubs, plan: str, title: str) -> None:
    account = an_account(stubs, plan=plan, projects=0)

    found = permission_sets(stubs, account)

    assert found["account_admin"].title == title
    assert list(found["account_admin"].aliases) == ["owner"]
    assert found["member"].title == "Member"


@pytest.mark.parametrize("plan", ["team", "enterprise"])
def test_the_permission_sets_of_an_account_are_the_catalogs_with_what_its_plan_covers(stubs: Stubs, plan: str) -> None:
    account = an_account(stubs, plan=plan, projects=0)

    found = permission_sets(stubs, account)

    assert list(found) == list(DOCUMENT["permission_sets"])
    assert {name for name in found if found[name].covered} == oracle.covered_sets(DOCUMENT, plan)
    for name, shown in found.items():
        held = oracle.permissions_in_set(DOCUMENT, name)
        assert list(shown.account_permissions) == sorted(held & oracle.account_permissions(DOCUMENT))
        assert list(shown.project_permissions) == sorted(held & oracle.project_permissions(DOCUMENT))
        assert shown.description == DOCUMENT["permission_sets"][name]["description"]


def test_the_one_replica_is_listed_up_to_date(stubs: Stubs, account: OwnAccount) -> None:
    revision = account.issue(on_all("member")).propagation.revision

    listed = ask(stubs.system.ListReplicas, ListReplicasRequest(), stubs.admin)

    (replica,) = listed.replicas
    assert (replica.applied_revision, replica.lag, replica.watchers, replica.epoch) == (revision, 0, 0, 1)
    assert replica.hold.ToTimedelta().total_seconds() == 5
    assert replica.started_time.ToDatetime() <= replica.renewed_time.ToDatetime()
    assert replica.address.startswith("127.0.0.1:")


# ---- AwaitPropagation


def test_a_changes_own_revision_can_be_awaited_again(stubs: Stubs, account: OwnAccount) -> None:
    token_id = account.issue(on_all("member")).token.token_id
    revision = account.revoke(token_id).propagation.revision

    awaited = [
        ask(stubs.tokens.AwaitPropagation, AwaitPropagationRequest(revision=revision), stubs.admin) for _ in range(2)
    ]

    assert [answer.propagation.revision for answer in awaited] == [revision] * 2
    assert [answer.propagation.replicas_confirmed for answer in awaited] == [1, 1]


def test_every_revision_since_the_beginning_can_be_awaited(stubs: Stubs) -> None:
    awaited = ask(stubs.tokens.AwaitPropagation, AwaitPropagationRequest(revision="1.0"), stubs.admin)

    assert (awaited.propagation.revision, awaited.propagation.replicas_confirmed) == ("1.0", 1)


def test_a_revision_beyond_the_end_is_refused(stubs: Stubs, account: OwnAccount) -> None:
    end = Revision.parse(account.put_project(fresh_id("p")).propagation.revision)
    beyond = f"{end.epoch}.{end.number + 1}"

    refusal = refused(stubs.tokens.AwaitPropagation, AwaitPropagationRequest(revision=beyond), stubs.admin)

    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "REVISION_BEYOND_END")
    assert refusal.metadata == {"revision": beyond, "end": str(end)}


def test_a_revision_of_another_epoch_is_refused(stubs: Stubs) -> None:
    refusal = refused(stubs.tokens.AwaitPropagation, AwaitPropagationRequest(revision="2.1"), stubs.admin)

    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "REVISION_OF_ANOTHER_EPOCH")
    assert refusal.metadata == {"revision": "2.1", "epoch": "1"}


@pytest.mark.parametrize(
    ("revision", "reason"),
    [
        ("", "FIELD_REQUIRED"),
        ("1", "FIELD_MALFORMED"),
        ("1.", "FIELD_MALFORMED"),
        ("01.2", "FIELD_MALFORMED"),
        ("1.02", "FIELD_MALFORMED"),
        ("+1.2", "FIELD_MALFORMED"),
        (" 1.2", "FIELD_MALFORMED"),
        ("1.2\n", "FIELD_MALFORMED"),
        ("1.-2", "FIELD_MALFORMED"),
        ("0.1", "FIELD_MALFORMED"),
        ("1.2.3", "FIELD_MALFORMED"),
        (f"1.{2**63}", "FIELD_MALFORMED"),
        ("1." + "9" * 5000, "FIELD_MALFORMED"),
        ("١.٢", "FIELD_MALFORMED"),
    ],
)
def test_what_is_no_revision_is_refused(stubs: Stubs, revision: str, reason: str) -> None:
    refusal = refused(stubs.tokens.AwaitPropagation, AwaitPropagationRequest(revision=revision), stubs.admin)

    assert (refusal.code, refusal.reason, refusal.bad_fields) == (
        "INVALID_ARGUMENT",
        "INVALID_FIELDS",
        [("revision", reason)],
    )
