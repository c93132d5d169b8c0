"""A field mask names what is updated, against an oracle that is told as the contract tells it (AIP-134)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from doorward.v1 import types_pb2
from doorward.v1.token_admin_pb2 import UpdateTokenRequest
from doorward.v1.types_pb2 import ServiceToken
from doorward_server.api.fields import Fields
from doorward_server.api.masks import wanted_update
from doorward_server.errors import InvalidArgument
from doorward_server.model import Grant, Token
from doorward_server.settings import Settings

PATHS = ("display_name", "description", "labels", "grants", "expire_time", "allow_self_rotation")
TOKEN_ID = "8Rk2v0QmZ1nT5xYb"
THEN = datetime(2030, 1, 1, tzinfo=UTC)
SETTINGS = Settings()

BEFORE = Token(
    token_id=TOKEN_ID,
    account_id="acme",
    display_name="before",
    description="as it was",
    labels={"team": "data"},
    grants=(Grant("job_admin", None),),
    allow_self_rotation=True,
    disabled=False,
    create_time=THEN,
    update_time=THEN,
    expire_time=THEN,
    revoke_time=None,
    revoke_reason="",
    created_by="operator:tester",
    ordinal=1,
    revision=1,
)

# Of each field its empty value and others; what a record then holds.
VALUES: dict[str, list[tuple[Any, Any]]] = {
    "display_name": [("", ""), ("after", "after")],
    "description": [("", ""), ("new", "new")],
    "labels": [({}, {}), ({"a": "b"}, {"a": "b"})],
    "grants": [
        ([], ()),
        ([types_pb2.Grant(permission_set="member", all_projects=True)], (Grant("member", None),)),
        ([types_pb2.Grant(permission_set="member", project_ids=["p"])], (Grant("member", ("p",)),)),
    ],
    "expire_time": [(None, None), (Timestamp(seconds=4102444800), datetime(2100, 1, 1, tzinfo=UTC))],
    "allow_self_rotation": [(False, False), (True, True)],
}
NEVER_EMPTY = {"display_name", "grants"}

CHOICES = st.fixed_dictionaries({path: st.sampled_from(range(len(values))) for path, values in VALUES.items()})
# Also what is in a ServiceToken and never updated: it is ignored.
UNUPDATED = st.fixed_dictionaries(
    {}, optional={"account_id": st.just("other"), "revoke_reason": st.just("r"), "state": st.just(4)}
)
MASKS = st.one_of(st.none(), st.lists(st.sampled_from(PATHS), max_size=8), st.just(["*"]))


def expected(choices: dict[str, int], mask: list[str] | None) -> dict[str, Any] | None:
    """The six fields afterwards, or None for a refusal."""
    if mask == ["*"]:
        named = list(PATHS)
    elif not mask:
        named = [path for path in PATHS if choices[path] != 0]
    else:
        named = mask
    after = {path: getattr(BEFORE, path) for path in PATHS}
    for path in named:
        if path in NEVER_EMPTY and choices[path] == 0:
            return None
        after[path] = VALUES[path][choices[path]][1]
    return after


@settings(deadline=None, max_examples=300)
@given(choices=CHOICES, unupdated=UNUPDATED, mask=MASKS)
def test_what_is_named_is_replaced_and_nothing_else(
    choices: dict[str, int], unupdated: dict[str, Any], mask: list[str] | None
) -> None:
    given_values = {path: VALUES[path][place][0] for path, place in choices.items()}
    request = UpdateTokenRequest(
        token=ServiceToken(token_id=TOKEN_ID, **given_values, **unupdated),
        update_mask=None if mask is None else FieldMask(paths=mask),
    )
    fields = Fields()

    wanted = wanted_update(fields, request, SETTINGS)

    told = expected(choices, mask)
    assert fields.are_right is (told is not None)
    if told is not None:
        after = wanted.applied_to(BEFORE, wanted.grants)
        assert {path: getattr(after, path) for path in PATHS} == told
        for name in set(Token.__slots__) - set(PATHS):
            assert getattr(after, name) == getattr(BEFORE, name)


@pytest.mark.parametrize(
    "path",
    ["", "token_id", "account_id", "state", "etag", "create_time", "grants.permission_set", "labels.team", "labels[a]",
     "displayName", " display_name", "display_name,labels", "token.labels", "**", "x" * 10_000],
)  # fmt: skip
def test_a_path_that_cannot_be_updated_is_malformed_wherever_it_stands(path: str) -> None:
    fields = Fields()
    mask = FieldMask(paths=["description", path, "labels", path])

    wanted_update(fields, UpdateTokenRequest(token=ServiceToken(token_id=TOKEN_ID), update_mask=mask), SETTINGS)

    with pytest.raises(InvalidArgument) as caught:
        fields.done()
    assert [(wrong.field, wrong.reason) for wrong in caught.value.violations] == [
        ("update_mask.paths[1]", "FIELD_MALFORMED"),
        ("update_mask.paths[3]", "FIELD_MALFORMED"),
    ]
    assert all(len(wrong.description) < 300 for wrong in caught.value.violations)


def test_a_star_stands_alone() -> None:
    fields = Fields()
    mask = FieldMask(paths=["description", "*"])

    wanted_update(fields, UpdateTokenRequest(token=ServiceToken(token_id=TOKEN_ID), update_mask=mask), SETTINGS)

    assert [wrong.field for wrong in fields.refusal().violations] == ["update_mask.paths[1]"]
