"""What the chunks of a batch hand on to each other: who is known, at one position, and nobody whose secret ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward.core.entries import account_entry, token_entry
from doorward.core.history import Position
from doorward.v1 import authorizer_pb2 as pb
from doorward_server.api.checks import Seen, item_of
from doorward_server.replica.caches import Missing

if TYPE_CHECKING:
    from doorward.core.entries import SecretEntry
    from doorward_server.service.authorize import Holder

HERE = Position(7, b"nonce...")


def a_holder(*secrets: SecretEntry) -> Holder:
    token = token_entry("t", "acme", revoked=False, disabled=False, expire_us=None, secrets=secrets, grants=())
    return token, account_entry("acme", "team", 1)


def test_only_who_is_known_and_does_not_end_is_handed_on() -> None:
    seen = Seen().at(HERE)
    lasting, ending = a_holder((1, None, None, None)), a_holder((1, None, None, 5), (2, None, None, None))

    seen.take({"lasting": lasting, "ending": ending, "unknown": None, "missing": Missing("token", "t")})

    assert seen.at(HERE) == {"lasting": lasting}


def test_nothing_is_handed_on_across_a_change() -> None:
    seen = Seen().at(HERE)
    seen.take({"lasting": a_holder((1, None, None, None))})

    assert seen.at(Position(7, b"nonce...")) == {}


def test_the_resource_is_the_one_that_was_set_even_to_nothing() -> None:
    assert item_of(pb.CheckRequest(secret="s", permission="p", project_id="x")) == ("s", "p", "project_id", "x")
    assert item_of(pb.CheckRequest(secret="s", permission="p", account_id="x")) == ("s", "p", "account_id", "x")
    assert item_of(pb.CheckRequest(secret="s", permission="p", project_id="")) == ("s", "p", "project_id", "")
    assert item_of(pb.CheckRequest(secret="s", permission="p", account_id="")) == ("s", "p", "account_id", "")
    assert item_of(pb.CheckRequest(secret="s", permission="p")) == ("s", "p", None, "")
    assert item_of(pb.BatchCheckItem(permission="p"), "common") == ("common", "p", None, "")
    assert item_of(pb.BatchCheckItem(permission="p", secret="own"), "common") == ("own", "p", None, "")
