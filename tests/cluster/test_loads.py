"""What a load brings is never older than what was applied here, whoever joins it and whatever happens meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward.core.secret import SecretKind, find_secret
from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import ISSUE, LOWER_PLAN, PUT_PROJECT, REVOKE
from tests.cluster.history import Subject
from tests.support.wire import eventually, fresh_id

if TYPE_CHECKING:
    from tests.cluster.clients import Kind
    from tests.cluster.clusters import Cluster
    from tests.support.cluster import StartCluster


def load_joined_after_the_return(cluster: Cluster, kind: Kind) -> None:
    """2: b's load stops after its snapshot, the change returns because b has reported it, a new check joins that load."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(a.client.another_of(subject), b)
    cluster.stand()
    b.arm(Failpoint.LOAD_AFTER_SNAPSHOT, times=1)
    before = b.client.begin_check(subject)
    b.reached(Failpoint.LOAD_AFTER_SNAPSHOT)
    cluster.change(kind, subject, a)
    after = cluster.begin_check(b, subject)
    b.release(Failpoint.LOAD_AFTER_SNAPSHOT)
    before.result()
    after.result()


def test_f02_a_check_that_joins_an_older_load_is_not_allowed(cluster: Cluster, kind: Kind) -> None:
    load_joined_after_the_return(cluster, kind)
    assert [check.answered for check in cluster.history.checks[-2:]] == [kind.makes, kind.makes]
    assert all(mutation.expired == 0 for mutation in cluster.history.mutations)
    verdicts.hold(cluster.history, cluster.rows)


def test_f02_goes_red_when_a_change_fences_no_load(start_cluster: StartCluster, kind: Kind) -> None:
    cluster = start_cluster(2, without=("fence",))
    load_joined_after_the_return(cluster, kind)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def token_looked_for_before_it_was_issued(cluster: Cluster) -> None:
    """3: b's load finds no such token and stops; IssueToken returns; a new check joins that load."""
    a, b = cluster["a"], cluster["b"]
    known = a.client.subject()
    cluster.warm(known, b)
    subject = Subject(known.account_id, known.project_id, "", "", known.permission, "TOKEN_UNRECOGNIZED")
    cluster.stand()
    a.arm(Failpoint.BARRIER_AFTER_ROWS)
    a.arm(Failpoint.MUTATION_BEFORE_COMMIT)
    issuing = ISSUE.at(a.client, subject)
    a.reached(Failpoint.MUTATION_BEFORE_COMMIT)
    subject.secret = a.last_secret()
    found = find_secret(subject.secret, SecretKind.TOKEN)
    assert found is not None
    subject.token_id = found.subject_id
    b.arm(Failpoint.LOAD_AFTER_SNAPSHOT, times=1)
    before = b.client.begin_check(subject)
    b.reached(Failpoint.LOAD_AFTER_SNAPSHOT)
    a.release(Failpoint.MUTATION_BEFORE_COMMIT)
    cluster.finish(cluster.waits(issuing, a), a)
    after = cluster.begin_check(b, subject)
    b.release(Failpoint.LOAD_AFTER_SNAPSHOT)
    before.result()
    after.result()
    b.client.check(subject)


def test_f03_a_token_is_known_everywhere_when_issue_token_returns(cluster: Cluster) -> None:
    token_looked_for_before_it_was_issued(cluster)
    assert [check.answered for check in cluster.history.checks[-2:]] == ["ALLOWED", "ALLOWED"]
    verdicts.hold(cluster.history, cluster.rows)


def test_f03_goes_red_when_not_found_is_not_fenced(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("fence",))
    token_looked_for_before_it_was_issued(cluster)
    assert verdicts.what_was_issued_is_known_everywhere(cluster.history)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def project_looked_for_before_it_was_put(cluster: Cluster) -> None:
    """3: the same for a project."""
    a, b = cluster["a"], cluster["b"]
    known = a.client.subject(everywhere=True)
    cluster.warm(known, b)
    subject = Subject(
        known.account_id,
        fresh_id("project"),
        known.token_id,
        known.secret,
        known.permission,
        "RESOURCE_NOT_IN_ACCOUNT",
    )
    cluster.stand()
    b.arm(Failpoint.LOAD_AFTER_SNAPSHOT, times=1)
    before = b.client.begin_check(subject)
    b.reached(Failpoint.LOAD_AFTER_SNAPSHOT)
    cluster.change(PUT_PROJECT, subject, a)
    after = cluster.begin_check(b, subject)
    b.release(Failpoint.LOAD_AFTER_SNAPSHOT)
    before.result()
    after.result()
    b.client.check(subject)


def test_f03_a_project_is_known_everywhere_when_put_project_returns(cluster: Cluster) -> None:
    project_looked_for_before_it_was_put(cluster)
    assert [check.answered for check in cluster.history.checks[-2:]] == ["ALLOWED", "ALLOWED"]
    verdicts.hold(cluster.history, cluster.rows)


def load_in_flight_while_the_plan_is_lowered(cluster: Cluster) -> None:
    """4: b knows neither token nor account; the token's load, which brings both, stops after its snapshot."""
    a, b = cluster["a"], cluster["b"]
    subject, other = a.client.subject(), a.client.subject()
    cluster.warm(other, b)
    cluster.stand()
    b.arm(Failpoint.LOAD_BEFORE_INSTALL, times=1)
    before = b.client.begin_check(subject)
    b.reached(Failpoint.LOAD_BEFORE_INSTALL)
    cluster.change(LOWER_PLAN, subject, a)
    b.release(Failpoint.LOAD_BEFORE_INSTALL)
    before.result()
    b.client.check(subject)


def test_f04_a_load_that_the_plan_overtook_is_never_installed(cluster: Cluster) -> None:
    load_in_flight_while_the_plan_is_lowered(cluster)
    assert [check.answered for check in cluster.history.checks[-2:]] == ["GRANT_SUSPENDED_BY_PLAN"] * 2
    verdicts.hold(cluster.history, cluster.rows)


def test_f04_goes_red_when_an_account_fences_no_load(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("fence",))
    load_in_flight_while_the_plan_is_lowered(cluster)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def load_across_a_registration(cluster: Cluster, kind: Kind) -> None:
    """5: b's load stops after its snapshot, b is cut off and pruned, registers anew, and a new check joins that load."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(a.client.another_of(subject), b)
    cluster.stand()
    b.arm(Failpoint.LOAD_AFTER_SNAPSHOT, times=1)
    before = b.client.begin_check(subject)
    b.reached(Failpoint.LOAD_AFTER_SNAPSHOT)
    pruned = b.status().replica_id
    b.line.stall()
    cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a,))
    eventually(lambda: pruned not in cluster.row_ids())
    b.line.heal()
    cluster.until_usable(b)
    after = cluster.begin_check(b, subject)
    b.release(Failpoint.LOAD_AFTER_SNAPSHOT)
    before.result()
    after.result()


def test_f05_a_load_begun_before_a_registration_is_discarded(cluster: Cluster, kind: Kind) -> None:
    generation = cluster["b"].status().generation
    load_across_a_registration(cluster, kind)
    assert cluster["b"].status().generation == generation + 1
    assert cluster.history.checks[-1].answered == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_f05_goes_red_when_a_load_outlives_its_registration(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("gen",))
    load_across_a_registration(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def load_that_fails(cluster: Cluster) -> None:
    """A token that b does not hold is asked about while b's database line is cut, and again when it is healed."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(a.client.another_of(subject), b)
    cluster.stand()
    b.line.cut()
    b.client.check(subject)
    b.line.heal()
    cluster.until_usable(b)
    b.client.check(subject)


def test_a_load_that_fails_makes_a_check_unavailable_and_is_not_remembered(cluster: Cluster) -> None:
    load_that_fails(cluster)
    assert [check.answered for check in cluster.history.checks[-2:]] == ["UNAVAILABLE", "ALLOWED"]
    verdicts.hold(cluster.history, cluster.rows)


def test_unavailable_rather_than_wrong_goes_red_when_an_error_counts_as_not_found(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("error",))
    load_that_fails(cluster)
    assert verdicts.unavailable_rather_than_wrong(cluster.history)
    assert verdicts.what_was_issued_is_known_everywhere(cluster.history)


@pytest.mark.parametrize("step", [Failpoint.LOAD_BEFORE_SNAPSHOT, Failpoint.LOAD_AFTER_SNAPSHOT])
def test_a_load_that_breaks_off_leaves_nothing_behind(cluster: Cluster, kind: Kind, step: Failpoint) -> None:
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(a.client.another_of(subject), b)
    cluster.stand()
    b.arm(step, "error", times=1)
    assert b.client.check(subject) == "UNAVAILABLE"
    cluster.change(kind, subject, a)
    assert b.client.check(subject) == kind.makes
    verdicts.hold(cluster.history, cluster.rows)
