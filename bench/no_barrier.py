"""`doorward`, but a mutation returns as soon as it is committed: what the barrier is measured against.

`python -m bench.no_barrier serve …` takes the options of `doorward serve`. As a replica it is like any other: it keeps a
lease, applies, reports, and others wait for it. Only what it commits itself, it does not wait for. No setting can do that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.cli.main import main
from doorward_server.model import Propagation
from doorward_server.replica.barrier import Barrier, Outcome

if TYPE_CHECKING:
    from doorward.core.revision import Revision


async def passed(_self: Barrier, revision: Revision, *_: object, **__: object) -> Outcome:
    """Waits for nobody."""
    return Outcome(Propagation(revision, 0, 0, 0, 0.0), [])


if __name__ == "__main__":
    Barrier.passed = passed  # type: ignore[assignment, method-assign]
    main()
