"""What administrators do while something else happens: the faults 33, 34, 38, 39 and 41, at real replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.v1 import token_admin_pb2
from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import PERMISSION, REVOKE
from tests.cluster.history import OK, Subject
from tests.support.server import bearer
from tests.support.wire import eventually, on_all

if TYPE_CHECKING:
    from tests.cluster.clients import Client, Pending
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Mutation
    from tests.support.cluster import StartCluster

UNRECOGNIZED = "TOKEN_UNRECOGNIZED"


def an_issuer(client: Client, subject: Subject) -> Subject:
    """A token of the subject's account that may issue others: its id and secret."""
    request = token_admin_pb2.IssueTokenRequest(
        account_id=subject.account_id, display_name="an issuer", grants=(on_all("account_admin"),)
    )
    issued = client.ask(client.tokens.IssueToken, request)
    return Subject(
        subject.account_id,
        subject.project_id,
        issued.token.token_id,
        issued.secret,
        "service_tokens:write",
        UNRECOGNIZED,
    )


def begin_issue_by(client: Client, issuer: Subject) -> tuple[Subject, Pending[Mutation]]:
    """Begins an IssueToken with the issuer's secret as the credential."""
    child = Subject(issuer.account_id, issuer.project_id, "", "", PERMISSION, UNRECOGNIZED, "account_admin")
    request = token_admin_pb2.IssueTokenRequest(
        account_id=issuer.account_id, display_name="a child", grants=(on_all("account_admin"),)
    )
    by = bearer(issuer.secret)
    return child, client.begin_mutation("IssueToken", child, "ALLOWED", client.tokens.IssueToken, request, done_by=by)


@pytest.mark.parametrize("point", [Failpoint.MUTATION_AFTER_AUTHN], ids=lambda point: point.value)
def test_f33_who_was_revoked_after_it_was_recognized_issues_nothing(cluster: Cluster, point: Failpoint) -> None:
    a, b = cluster["a"], cluster["b"]
    issuer = an_issuer(a.client, a.client.subject())
    a.arm(point)
    child, issuing = begin_issue_by(a.client, issuer)
    a.reached(point)
    assert REVOKE.at(b.client, issuer).result().answered == OK
    a.release(point)
    assert (issuing.result().answered, issuing.record.why) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")
    assert not child.token_id
    left = cluster.rows.value("SELECT count(*) FROM tokens WHERE created_by = $1", f"token:{issuer.token_id}")
    assert left == 0


def test_f34_a_filtered_revocation_misses_no_token_whose_issue_was_about_to_commit(cluster: Cluster) -> None:
    a, b = cluster["a"], cluster["b"]
    issuer = an_issuer(a.client, a.client.subject())
    a.arm(Failpoint.MUTATION_BEFORE_COMMIT)
    child, issuing = begin_issue_by(a.client, issuer)
    a.reached(Failpoint.MUTATION_BEFORE_COMMIT)
    request = token_admin_pb2.RevokeTokensByFilterRequest(
        account_id=issuer.account_id, obtained_by=issuer.token_id, include_descendants=True, reason="leaked"
    )
    revoking = b.client.begin_mutation("RevokeTokensByFilter", None, "", b.client.tokens.RevokeTokensByFilter, request)
    # It waits for the account's lock, which the issue holds.
    eventually(lambda: cluster.rows.value("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
    a.release(Failpoint.MUTATION_BEFORE_COMMIT)
    assert issuing.result().answered == OK
    assert revoking.result().answered == OK
    assert list(revoking.response.token_ids) == [child.token_id]
    assert [replica.client.check(child) for replica in cluster.replicas.values()] == ["TOKEN_REVOKED"] * 3


@pytest.fixture
def slow_walls(start_cluster: StartCluster) -> Cluster:
    """Two replicas whose wall clocks are five minutes slow."""
    return start_cluster(2, without=("wall",))


def test_f38_a_token_ends_by_the_databases_clock_whatever_the_replicas_say(slow_walls: Cluster) -> None:
    a, b = slow_walls["a"], slow_walls["b"]
    subject = a.client.subject()
    slow_walls.warm(subject, a, b)
    token: Any = a.client.ask(
        a.client.tokens.GetToken, token_admin_pb2.GetTokenRequest(token_id=subject.token_id)
    ).token
    end = Timestamp()
    end.FromDatetime(slow_walls.rows.value("SELECT clock_timestamp() + interval '700 milliseconds'"))
    token.expire_time.CopyFrom(end)
    request = token_admin_pb2.UpdateTokenRequest(token=token)
    request.update_mask.paths.append("expire_time")
    assert a.client.ask(a.client.tokens.UpdateToken, request).token.HasField("expire_time")
    ended = "SELECT clock_timestamp() >= $1"
    eventually(
        lambda: slow_walls.rows.value(ended, end.ToDatetime(tzinfo=slow_walls.rows.value("SELECT now()").tzinfo))
    )
    assert [replica.client.check(subject) for replica in (a, b)] == ["TOKEN_EXPIRED"] * 2


def rotation_during_a_bcrypt(cluster: Cluster) -> tuple[Subject, str]:
    """39: b has to ask bcrypt about the old secret; while that runs the secret is rotated out; then the result comes."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.rows.fetch(
        "UPDATE token_secrets SET digest = NULL, pepper_id = NULL WHERE token_id = $1 RETURNING 1", subject.token_id
    )
    # What a replica knows of the digest is forgotten with the next change to the token.
    assert a.client.ask(
        a.client.tokens.EnableToken, token_admin_pb2.EnableTokenRequest(token_id=subject.token_id)
    ).propagation.revision
    b.arm(Failpoint.BCRYPT_BEFORE_RESULT)
    check = b.client.begin_check(subject)
    b.reached(Failpoint.BCRYPT_BEFORE_RESULT)
    request = token_admin_pb2.RotateTokenRequest(token_id=subject.token_id, overlap=Duration())
    rotated = a.client.begin_mutation("RotateToken", subject, UNRECOGNIZED, a.client.tokens.RotateToken, request)
    assert rotated.result().answered == OK
    b.release(Failpoint.BCRYPT_BEFORE_RESULT)
    return subject, check.result().answered


def test_f39_a_bcrypt_that_ends_after_its_secret_was_rotated_out_lets_nobody_in(cluster: Cluster) -> None:
    subject, answered = rotation_during_a_bcrypt(cluster)
    assert answered == UNRECOGNIZED
    digests = cluster.rows.fetch(
        "SELECT version, digest IS NULL FROM token_secrets WHERE token_id = $1 ORDER BY version", subject.token_id
    )
    assert dict(digests).get(2) is False
    assert dict(digests).get(1, True), "the digest of a secret that was rotated out was written back"
    assert cluster["b"].client.check(subject) == UNRECOGNIZED
    verdicts.hold(cluster.history, cluster.rows)


def test_f41_the_middle_secret_of_two_rotations_is_refused_everywhere_on_return(cluster: Cluster) -> None:
    a = cluster["a"]
    oldest = a.client.subject()
    rotated = [
        a.client.ask(
            a.client.tokens.RotateToken,
            token_admin_pb2.RotateTokenRequest(token_id=oldest.token_id, overlap=Duration(seconds=3600)),
        )
    ]
    middle = Subject(oldest.account_id, oldest.project_id, oldest.token_id, rotated[0].secret, PERMISSION, "ALLOWED")
    cluster.warm(middle, *cluster.replicas.values())
    request = token_admin_pb2.RotateTokenRequest(token_id=oldest.token_id, overlap=Duration(seconds=7200))
    rotating = a.client.begin_mutation("RotateToken", middle, UNRECOGNIZED, a.client.tokens.RotateToken, request)
    assert rotating.result().answered == OK
    newest = Subject(
        oldest.account_id, oldest.project_id, oldest.token_id, rotating.response.secret, PERMISSION, "ALLOWED"
    )
    for replica in cluster.replicas.values():
        assert [replica.client.check(each) for each in (oldest, middle, newest)] == ["ALLOWED", UNRECOGNIZED, "ALLOWED"]
    first_end, second_end = (each.former_secret_expire_time for each in (rotated[0], rotating.response))
    assert first_end == second_end, "the oldest secret keeps the end that it had"
    verdicts.hold(cluster.history, cluster.rows)
