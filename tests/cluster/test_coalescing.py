"""42: a client's batch is on its way, the change returns, the same check again: it is answered from after the change.

The client's own tests (`tests/client/test_coalescing.py`) hold the rule against a server that they hold back; here it stands
under the real barrier, in both dialects. Numbers are those of `docs/faults.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward._batching import DEFAULT_BOUNDS
from tests.cluster.steps import Step
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Kind
    from tests.cluster.clusters import Cluster
    from tests.support.dialects import Begun, Dialect

MOST = DEFAULT_BOUNDS.most_in_flight


def test_f42_a_check_begun_after_the_return_joins_no_batch_that_was_sent(
    dialect: Dialect, cluster: Cluster, kind: Kind
) -> None:
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    ((_, bearer),) = cluster.deployment.caller
    client = dialect.client("Authorizer", b.await_ready(), credential=bearer.removeprefix("Bearer "), timeout=60.0)

    def begin() -> Begun:
        return client.begin("check", subject.secret, subject.permission, project_id=subject.project_id)

    assert begin().result()
    b.arm(Step.CHECK_AFTER_DECIDE)
    under_way: list[Begun] = []
    for _ in range(MOST):
        under_way.append(begin())
        b.reached(Step.CHECK_AFTER_DECIDE)
    waiting = [begin(), begin()]
    eventually(lambda: client.outstanding() == MOST - 1 + len(waiting))
    kind.at(a.client, subject).result()
    after = [begin(), begin()]
    eventually(lambda: client.outstanding() == MOST - 1 + len(waiting) + len(after))
    b.release(Step.CHECK_AFTER_DECIDE)
    assert {str(one.result().reason) for one in after} == {kind.makes}
    assert {one.result().reason for one in under_way} == {None}  # begun before, and decided then
