"""Warm `LocalAuthorizer.check` on asyncio and threads beside cedarpy, casbin and a dict lookup: one run, the same questions.

A server runs and keeps the sub-leases; every measured check is decided in the calling process, or the run fails. The peers
have an environment of their own (`.venv-local-peers`, made here from `local-peers.txt`) and the same model: the catalog's
permission sets, an account's projects, tokens with a grant on one project and one on all. All answers are compared before
anything is timed. What they do not do: prove the secret (they are given a token's id), know whether it was revoked or has
expired, what the plan covers, or be told of any change. Short rounds alternate; called by `python -m bench local`.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import harness, rows
from bench.report import Table, undisturbed
from bench.told import told
from doorward.core.catalog import Level
from doorward_server.catalog.load import builtin_text, load_catalog

if TYPE_CHECKING:
    from bench.harness import Cores
    from bench.rows import Population

TOKENS: Final = 100
ASKED_ABOUT: Final = 20
ROUNDS: Final = 60
# How often a round asks the hundred questions: each round takes some milliseconds.
TIMES: Final = {"asyncio": 20, "threads": 20, "cedarpy": 2, "casbin": 1, "lookup": 200}
TITLES: Final = {
    "asyncio": "doorward.aio.LocalAuthorizer.check",
    "threads": "doorward.threads.LocalAuthorizer.check",
    "cedarpy": "cedarpy, policies and entities parsed before",
    "casbin": "casbin, RBAC with domains",
    "lookup": "a call and a dict lookup",
}
OURS: Final = ("asyncio", "threads")
LIMIT_NS: Final = 2_000.0
PACKAGES: Final = harness.ROOT / "bench" / "local-peers.txt"
ENVIRONMENT: Final = harness.ROOT / ".venv-local-peers"
PYTHON: Final = ENVIRONMENT / "bin" / "python"
INSTALL_S: Final = 300.0


def run(cores: Cores) -> list[Table]:
    """Measures all of them, in alternating rounds."""
    _make_environment()
    with tempfile.TemporaryDirectory(prefix="doorward-bench-") as directory, contextlib.ExitStack() as stack:
        data_dir = Path(directory) / "data"
        population = rows.deployment(data_dir, TOKENS, cores.server)
        server = stack.enter_context(harness.doorward(data_dir, cores.server))
        asked = [question for index in range(ASKED_ABOUT) for question in _questions(population, index)]
        job = {
            "address": server.address,
            "credential": (data_dir / "caller.token").read_text().strip(),
            "questions": [
                (population.secret(index), permission, project_id, None if project_id else population.account_id(index))
                for index, permission, project_id, _ in asked
            ],
        }
        ours = {name: stack.enter_context(told(["-m", "bench.local_caller", name], cores.callers)) for name in OURS}
        peers = stack.enter_context(told(["bench/local_peers.py"], cores.callers, python=str(PYTHON)))
        answers = {name: caller.ask({**job, "times": TIMES[name]}) for name, caller in ours.items()}
        answers |= peers.ask(_peers_job(population, asked))
        expected = [allowed for *_, allowed in asked]
        if wrong := [name for name, given in answers.items() if given != expected]:
            raise RuntimeError(f"not the right answers: {', '.join(wrong)}")
        ns: dict[str, list[float]] = {name: [] for name in TIMES}
        for number in range(-1, ROUNDS):
            for name in list(TIMES) if number % 2 else list(TIMES)[::-1]:
                measured = ours[name].ask("round") if name in ours else peers.ask(name)
                if number >= 0:  # the first round only warms up
                    ns[name].append(measured["ns"])
    return [_table(ns, len(expected), sum(expected))]


def _questions(population: Population, index: int) -> list[tuple[int, str, str | None, bool]]:
    """Token, permission, project (None: at the account), and what is right."""
    own, other = population.project_id(index), population.project_id(index + 1)
    return [
        (index, rows.PERMISSION_ON_ONE, own, True),
        (index, rows.PERMISSION_ON_ONE, other, False),
        (index, rows.PERMISSION_ON_ALL, other, True),
        (index, rows.PERMISSION_AT_ACCOUNT, None, True),
        (index, "billing:write", None, False),
    ]


def _peers_job(population: Population, asked: list[tuple[int, str, str | None, bool]]) -> dict[str, Any]:
    """The catalog, the account and its tokens as plain values."""
    catalog = load_catalog(builtin_text(), 1)
    sets = {
        name: [
            permission.name
            for permission in catalog.permissions.values()
            if permission.bit & (held.project_mask if permission.level is Level.PROJECT else held.account_mask)
        ]
        for name, held in catalog.permission_sets.items()
    }
    return {
        "sets": sets,
        "account_id": population.account_id(0),
        "projects": sorted({population.project_id(index) for index in range(TOKENS)}),
        "grants": {
            token_id: [(rows.SET_ON_ONE, population.project_id(index)), (rows.SET_ON_ALL, "*")]
            for index, token_id in enumerate(population.token_ids)
        },
        "questions": [(population.token_ids[index], permission, project) for index, permission, project, _ in asked],
        "expected": [allowed for *_, allowed in asked],
        "times": TIMES,
    }


def _make_environment() -> None:
    """Installs the peers, unless that was done with this list of them."""
    stamp = ENVIRONMENT / "installed.txt"
    if stamp.exists() and stamp.read_text() == PACKAGES.read_text():
        return
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "-r"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], [*pip, str(PACKAGES)]):
        subprocess.run(command, check=True, timeout=INSTALL_S)
    stamp.write_text(PACKAGES.read_text())


def _table(ns: dict[str, list[float]], questions: int, allowed: int) -> Table:
    table = Table(
        f"A warm check in the calling process; {questions} questions, {allowed} of them allowed, all answered alike; "
        f"{ROUNDS} alternating rounds",
        ("what", "undisturbed, ns", "median, ns", "of ours on asyncio", "target"),
    )
    base = undisturbed(ns["asyncio"])
    for name, values in ns.items():
        least = undisturbed(values)
        table.add(
            TITLES[name],
            f"{least:,.0f}",
            f"{statistics.median(values):,.0f}",
            f"{least / base:.2f} ×",
            f"≤ {LIMIT_NS:,.0f} ns" if name in OURS else "",
        )
        if name in OURS:
            table.require(least <= LIMIT_NS, f"{TITLES[name]}: {least:,.0f} ns, the target is {LIMIT_NS:,.0f} ns")
    return table
