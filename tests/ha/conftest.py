"""These tests take minutes and need what is no dependency of ours: they run when they are asked for, by `make test-ha`.

Skipped, saying what is missing, where Patroni or etcd is not installed. Design section 6, External; docs/failover.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ha.patroni import Patronis, find_programs
from tests.support.postgres import scratch_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whoever runs all tests does not mean these."""
    asked_for = [Path(argument.partition("::")[0]).resolve() for argument in config.invocation_params.args]
    return None if any(path == HERE or HERE in path.parents for path in asked_for) else True


@pytest.fixture
def patronis() -> Iterator[Patronis]:
    """Three PostgreSQL servers under Patroni, one of them primary and one its synchronous standby."""
    programs = find_programs()
    if isinstance(programs, str):
        pytest.skip(f"{programs} (issue 5; see docs/failover.md)")
    with scratch_directory() as directory:
        made = Patronis(programs, directory)
        try:
            made.open()
            yield made
        finally:
            made.close()
