"""try"""

import pytest
from tests.cluster.test_failover import *
from tests.support.pair import Pair


@pytest.mark.parametrize("how", ["frozen", "deposed"])
@pytest.mark.parametrize("hold_s", [1.0, 3.0])
def test_p(pair: Pair, how, hold_s) -> None:
    (a,) = pair.serve(1, pair.primary, pair.standby, hold_s=hold_s)
    s = a.subject()
    s2 = a.subject()
    assert a.check(s) == ALLOWED
    if how == "frozen":
        pair.primary.freeze()
    pair.standby.promote()
    pair.attach_standby(pair.standby)
    waits_for(a, s, UNAVAILABLE)
    waits_for(a, s, ALLOWED)
    eventually(lambda: a.begin_revoke(s2).result().answered == OK)
