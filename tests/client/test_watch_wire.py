"""The messages of Watch on the wire and as values: every one goes over, roundings err to the side of no, the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import duration_pb2, timestamp_pb2

from doorward._watch_wire import decoded, encoded
from doorward.core import watch_messages as said
from doorward.core.secret import SecretKind, generate, new_id
from doorward.core.watch_session import WatchViolation
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import types_pb2

RESPONSE = pb.WatchResponse
SNAPSHOT = pb.WatchResponse.Snapshot


def taken(**body: Any) -> said.Body:
    """What a message with this body is read as."""
    message = decoded(RESPONSE(sequence=3, position="1.7", **body).SerializeToString())
    assert (message.sequence, message.position) == (3, "1.7")
    return message.body


def refused(**body: Any) -> str:
    with pytest.raises(WatchViolation) as caught:
        taken(**body)
    return str(caught.value)


def stamp(seconds: int, nanos: int = 0) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)


def test_every_message_to_the_replica_is_the_contract_s() -> None:
    secret = generate(SecretKind.TOKEN, new_id())
    keys = tuple(said.WatchKey(kind, f"a {kind}") for kind in said.KeyKind)
    table: list[tuple[said.ToReplica, dict[str, Any]]] = [
        (said.Hello("agent"), {"hello": {"agent": "agent"}}),
        (said.Ask(4), {"ask": {"ask": 4}}),
        (said.Ack("1.7"), {"ack": {"position": "1.7"}}),
        (said.Resolve(5, secret), {"resolve": {"id": 5, "secret": secret.reveal()}}),
        (said.ResolveProject(6, "p1"), {"resolve_project": {"id": 6, "project_id": "p1"}}),
        (
            said.Forget(keys, 9),
            {
                "forget": {
                    "keys": [{"token_id": "a token"}, {"account_id": "a account"}, {"project_id": "a project"}],
                    "sequence": 9,
                }
            },
        ),
        (said.Goodbye("session"), {"goodbye": {"session_id": "session"}}),
    ]
    for message, body in table:
        assert pb.WatchRequest.FromString(encoded(message)) == pb.WatchRequest(**body)
    assert {type(message) for message, _ in table} == set(said.ToReplica.__args__)


def test_every_message_of_the_replica_is_read() -> None:
    start = RESPONSE.Start(session_id="s", max_held_keys=7)
    start.hold.FromSeconds(5)
    start.ask_interval.FromMilliseconds(1250)
    start.ack_within.FromMilliseconds(1250)
    assert taken(start=start) == said.Start("s", 5_000_000_000, 1_250_000_000, 1_250_000_000, 7)
    evict = RESPONSE.Evict(keys=[pb.WatchKey(token_id="t"), pb.WatchKey(project_id="p")], catalog=True)
    keys = (said.WatchKey(said.KeyKind.TOKEN, "t"), said.WatchKey(said.KeyKind.PROJECT, "p"))
    assert taken(evict=evict) == said.Evict(keys, catalog=True)
    assert taken(evict=RESPONSE.Evict(everything=True)) == said.Evict((), everything=True)
    catalog = RESPONSE.Catalog(catalog_version=3, label="l", schema=1)
    catalog.account_resources.add(name="billing", actions=["read"])
    catalog.project_resources.add(name="jobs", actions=["read", "write"])
    catalog.permission_sets.add(name="job_admin", read=["jobs"], write=["jobs"])
    catalog.plans.add(name="team", permission_sets=["job_admin"])
    assert taken(catalog=catalog) == said.CatalogSent(
        3,
        "l",
        1,
        {"billing": ("read",)},
        {"jobs": ("read", "write")},
        {"job_admin": (("jobs",), ("jobs",))},
        {"team": ("job_admin",)},
    )
    assert taken(reset=RESPONSE.Reset()) == said.Reset()
    assert taken(failure=RESPONSE.Failure(id=8)) == said.Failure(8)


def test_every_snapshot_is_read() -> None:
    token = SNAPSHOT.Token(
        token_id="t",
        account=SNAPSHOT.Account(account_id="acme", plan="team", state=types_pb2.ACCOUNT_STATE_SUSPENDED),
        secret_version=2,
        secrets=[
            SNAPSHOT.SecretVersion(version=1, expire_time=stamp(100, 1_999)),
            SNAPSHOT.SecretVersion(version=2),
        ],
        disabled=True,
        expire_time=stamp(200, 2_999),
        grants=[
            types_pb2.Grant(permission_set="a", all_projects=True),
            types_pb2.Grant(permission_set="b", project_ids=["p1", "p2"]),
            types_pb2.Grant(permission_set="c"),
        ],
    )
    assert taken(snapshot=SNAPSHOT(id=4, token=token)) == said.TokenSnapshot(
        4,
        "t",
        ("acme", "team", 2),
        2,
        ((1, 100_000_001), (2, None)),  # an end is rounded down
        revoked=False,
        disabled=True,
        expire_us=200_000_002,
        grants=(("a", None), ("b", ("p1", "p2")), ("c", ())),  # of none of them: not of all
    )
    unrecognized = SNAPSHOT(id=5, unrecognized=SNAPSHOT.Unrecognized(token_id="t"))
    assert taken(snapshot=unrecognized) == said.Unrecognized(5, "t")
    project = SNAPSHOT(id=6, project=SNAPSHOT.Project(project_id="p", account_id="acme"))
    assert taken(snapshot=project) == said.ProjectSnapshot(6, "p", "acme")
    nobodys = SNAPSHOT(id=7, project=SNAPSHOT.Project(project_id="p"))
    assert taken(snapshot=nobodys) == said.ProjectSnapshot(7, "p", None)


@pytest.mark.parametrize(("nanos", "latest_us"), [(0, 50_000_000), (1, 50_000_001), (1_000, 50_000_001)])
def test_the_database_s_time_is_rounded_up(nanos: int, latest_us: int) -> None:
    length = duration_pb2.Duration(seconds=3, nanos=871_000_001)
    grant = RESPONSE.LeaseGrant(ask=2, length=length, latest_time=stamp(50, nanos))
    assert taken(lease_grant=grant) == said.LeaseGrant(2, 3_871_000_001, latest_us)


def test_what_is_not_known_here_ends_the_session() -> None:
    assert "body" in refused()
    assert "entry" in refused(snapshot=SNAPSHOT(id=1))
    assert "key" in refused(evict=RESPONSE.Evict(keys=[pb.WatchKey()]))
    assert "time" in refused(lease_grant=RESPONSE.LeaseGrant(ask=1, length=duration_pb2.Duration(seconds=1)))
    assert "another" in refused(start=RESPONSE.Start(resumed=True))
    both = types_pb2.Grant(permission_set="a", all_projects=True, project_ids=["p"])
    assert "grant" in refused(snapshot=SNAPSHOT(id=1, token=SNAPSHOT.Token(grants=[both])))
    late = RESPONSE.LeaseGrant(ask=1, latest_time=timestamp_pb2.Timestamp(seconds=2**62))
    assert "time" in refused(lease_grant=late)
    with pytest.raises(WatchViolation, match="WatchResponse"):
        decoded(b"\xff\xff")


def test_a_secret_on_its_way_is_shown_nowhere() -> None:
    secret = generate(SecretKind.TOKEN, new_id())
    assert secret.reveal() not in repr(said.Resolve(1, secret))
