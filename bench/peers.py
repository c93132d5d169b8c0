"""`client.check` beside what else a user could take: the plain stub, Cerbos, a service written by hand. `make bench-peers`.

The same tokens, projects, permission sets and questions, in one run; every answer of every peer is compared with what is
right. One Python caller process; whatever answers (with its database, where it has one) has another core. Each does what its
users would have it do:

- Doorward proves the secret, knows the token's state, and answers nothing of before a change that has returned.
- Cerbos gets the token's account and grants in each request, and decides by policies made of the same catalog. It keeps no
  tokens: to prove the secret and to fetch what the token holds is left to the caller, and is not measured here.
- The hand-written service looks the SHA-256 of the secret up and joins what it holds, one query a check, without a cache.

`make bench-peers` makes the environment with Cerbos's client and the others (`.venv-peers`) and fetches Cerbos's server.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, quantiles
from typing import IO, TYPE_CHECKING, Any, Final

import asyncpg

from bench import harness, rows
from bench.harness import Cores
from bench.report import Table
from bench.told import told
from doorward.core.catalog import Level
from doorward_server import telemetry
from doorward_server.catalog.load import builtin_text, load_catalog
from doorward_server.embedded.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rows import Population
    from bench.told import Told
    from doorward.core.catalog import Catalog

PYTHON: Final = str(harness.ROOT / ".venv-peers" / "bin" / "python")
CERBOS: Final = harness.ROOT / ".venv-peers" / "cerbos" / "package" / "cerbos-linux-x64"
TOKENS: Final = 100
PLAN: Final = "enterprise"
# Callers at once: rounds, and calls in a round; of the client with many callers ten times as many.
WINDOWS: Final = {1: (20, 100), 64: (12, 400), 256: (12, 800)}
NAMES: Final = {
    "client": "Doorward, client.check",
    "stub": "Doorward, generated stub",
    "cerbos": "Cerbos, its async client",
    "handwritten": "by hand: Starlette, asyncpg",
}
SCHEMA: Final = """
CREATE TABLE projects (project_id text PRIMARY KEY, account_id text NOT NULL);
CREATE TABLE tokens (token_id text PRIMARY KEY, digest bytea UNIQUE NOT NULL, account_id text NOT NULL, plan text NOT NULL,
  revoked boolean NOT NULL DEFAULT false, expire_time timestamptz);
CREATE TABLE grants (token_id text NOT NULL REFERENCES tokens, permission_set text NOT NULL, project_id text);
CREATE INDEX ON grants (token_id);
CREATE TABLE set_permissions (permission_set text, permission text, PRIMARY KEY (permission_set, permission));
CREATE TABLE plan_sets (plan text, permission_set text, PRIMARY KEY (plan, permission_set));
"""


def questions_of(population: Population) -> list[dict[str, Any]]:
    """Three of each token: allowed on its project, denied on another one, allowed there by the grant on all projects."""
    questions = []
    for index in range(TOKENS):
        own, other = population.project_id(index), population.project_id(index + 1)
        token = {
            "secret": population.secret(index),
            "token_id": population.token_ids[index],
            "account_id": population.account_id(index),
            "grants": {rows.SET_ON_ALL: {"all": True}, rows.SET_ON_ONE: {"all": False, "projects": [own]}},
        }
        questions += [
            {**token, "permission": rows.PERMISSION_ON_ONE, "project_id": own, "allowed": True},
            {**token, "permission": rows.PERMISSION_ON_ONE, "project_id": other, "allowed": False},
            {**token, "permission": rows.PERMISSION_ON_ALL, "project_id": other, "allowed": True},
        ]
    return questions


def sets_by_permission(catalog: Catalog) -> dict[str, list[str]]:
    """Which sets that the plan covers hold each permission on projects."""
    held = {
        permission.name: [
            name
            for name, permission_set in sorted(catalog.permission_sets.items())
            if name in catalog.plans[PLAN].permission_sets and permission_set.project_mask & permission.bit
        ]
        for permission in catalog.permissions.values()
        if permission.level is Level.PROJECT
    }
    return {permission: names for permission, names in held.items() if names}


def policies(catalog: Catalog) -> dict[str, dict[str, Any]]:
    """The catalog as Cerbos's policies: a derived role for each set, a rule for each permission."""
    held = sets_by_permission(catalog)
    names = sorted({name for sets in held.values() for name in sets})
    grant = "request.principal.attr.grants[{!r}]"
    roles = [
        {
            "name": name,
            "parentRoles": ["token"],
            "condition": {
                "match": {
                    "all": {
                        "of": [
                            {"expr": "request.principal.attr.account == request.resource.attr.account"},
                            {"expr": f"{name!r} in request.principal.attr.grants"},
                            {
                                "expr": f"{grant.format(name)}.all || "
                                f"request.resource.id in {grant.format(name)}.projects"
                            },
                        ]
                    }
                }
            },
        }
        for name in names
    ]
    rules = [
        {"actions": [permission], "effect": "EFFECT_ALLOW", "derivedRoles": sets}
        for permission, sets in sorted(held.items())
    ]
    version = "api.cerbos.dev/v1"
    return {
        "roles.json": {"apiVersion": version, "derivedRoles": {"name": "sets", "definitions": roles}},
        "project.json": {
            "apiVersion": version,
            "resourcePolicy": {
                "resource": "project",
                "version": "default",
                "importDerivedRoles": ["sets"],
                "rules": rules,
            },
        },
    }


@contextlib.contextmanager
def cerbos(directory: Path, cores: Cores) -> Iterator[str]:
    """Cerbos's server on loopback; its address."""
    (directory / "policies").mkdir(parents=True)
    for name, policy in policies(load_catalog(builtin_text(), 1)).items():
        (directory / "policies" / name).write_text(json.dumps(policy))
    grpc_port, http_port = _free_port(), _free_port()
    config = {
        "server": {"grpcListenAddr": f"127.0.0.1:{grpc_port}", "httpListenAddr": f"127.0.0.1:{http_port}"},
        "storage": {"driver": "disk", "disk": {"directory": str(directory / "policies"), "watchForChanges": False}},
        "telemetry": {"disabled": True},
    }
    (directory / "config.json").write_text(json.dumps(config))
    with tempfile.TemporaryFile() as log, harness.running_on(cores.server):
        command = [str(CERBOS), "server", "--log-level=warn", f"--config={directory / 'config.json'}"]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            _await_listening(process, grpc_port, log)
            yield f"127.0.0.1:{grpc_port}"
        finally:
            harness.stop(process)


@contextlib.contextmanager
def handwritten(directory: Path, cores: Cores, population: Population) -> Iterator[str]:
    """The hand-written service and its PostgreSQL, on the servers' core; its address."""
    embedded = EmbeddedPostgres(directory)
    with asyncio.Runner() as runner:
        with harness.running_on(cores.server):
            runner.run(embedded.start())
        try:
            runner.run(_fill(embedded.url, population))
            service = ["-m", "bench.peer_service", embedded.url]
            with harness.serving(service, cores.server, {"PYTHONPATH": str(harness.ROOT)}, python=PYTHON) as server:
                yield server.address
        finally:
            runner.run(embedded.stop())


async def _fill(url: str, population: Population) -> None:
    held = sets_by_permission(load_catalog(builtin_text(), 1))
    tokens = [
        (population.token_ids[index], hashlib.sha256(population.secret(index).encode()).digest())
        for index in range(TOKENS)
    ]
    accounts = [(population.account_id(index), PLAN) for index in range(TOKENS)]
    projects = {(population.project_id(index), population.account_id(index)) for index in range(TOKENS)}
    grants = [
        grant
        for index, (token_id, _) in enumerate(tokens)
        for grant in ((token_id, rows.SET_ON_ALL, None), (token_id, rows.SET_ON_ONE, population.project_id(index)))
    ]
    permissions = [(name, permission) for permission, names in held.items() for name in names]
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(SCHEMA)
        await connection.executemany("INSERT INTO projects VALUES ($1, $2)", sorted(projects))
        filled = [(*token, *account) for token, account in zip(tokens, accounts, strict=True)]
        columns = "(token_id, digest, account_id, plan)"
        await connection.executemany(f"INSERT INTO tokens {columns} VALUES ($1, $2, $3, $4)", filled)
        await connection.executemany("INSERT INTO grants VALUES ($1, $2, $3)", grants)
        await connection.executemany("INSERT INTO set_permissions VALUES ($1, $2)", permissions)
        sets = [(PLAN, name) for name in sorted({name for name, _ in permissions})]
        await connection.executemany("INSERT INTO plan_sets VALUES ($1, $2)", sets)
        await connection.execute("VACUUM (ANALYZE)")
    finally:
        await connection.close()


def run(cores: Cores) -> list[Table]:
    """Measures all of them, in alternating rounds."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="doorward-bench-")))
        population = rows.deployment(directory / "data", TOKENS, cores.server)
        doorward = stack.enter_context(harness.doorward(directory / "data", cores.server))
        addresses = {
            "client": doorward.address,
            "stub": doorward.address,
            "cerbos": stack.enter_context(cerbos(directory / "cerbos", cores)),
            "handwritten": stack.enter_context(handwritten(directory / "handwritten", cores, population)),
        }
        job = {
            "questions": questions_of(population),
            "addresses": addresses,
            "credential": (directory / "data" / "caller.token").read_text().strip(),
        }
        path = {"PYTHONPATH": f"{harness.ROOT / 'client'}:{harness.ROOT}"}
        caller = stack.enter_context(told(["-m", "bench.peer_caller"], cores.callers, environment=path, python=PYTHON))
        caller.ask(job)
        for name in addresses:
            _asked(caller, name, len(job["questions"]), 8)  # every question once: compared, and warmed up
        return [_table({window: _measure(caller, list(addresses), window) for window in WINDOWS})]


def _measure(caller: Told, names: list[str], window: int) -> dict[str, list[dict[str, Any]]]:
    count, calls = WINDOWS[window]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(-1, count):
        for name in names if number % 2 else names[::-1]:
            times = 10 if name == "client" and window > 1 else 1
            measured = _asked(caller, name, calls * times, window)
            if number >= 0:  # the first round only warms up
                rounds[name].append(measured)
    return rounds


def _asked(caller: Told, name: str, calls: int, window: int) -> dict[str, Any]:
    answer: dict[str, Any] = caller.ask({"target": name, "calls": calls, "window": window})
    if answer["wrong"]:
        raise RuntimeError(f"{name}: {answer['wrong']} of {answer['calls']} answers were wrong")
    return answer


def _table(measured: dict[int, dict[str, list[dict[str, Any]]]]) -> Table:
    table = Table(
        "One check, by callers at once; the least disturbed fifth of alternating rounds",
        ("callers", "what", "checks/s", "p50, ms", "p99, ms", "caller's CPU, µs", "beside client.check"),
    )
    for window, rounds in measured.items():
        rates = {}
        for name, made in rounds.items():
            best = sorted(made, key=lambda one: one["seconds"] / one["calls"])[: max(1, len(made) // 5)]
            rates[name] = fmean(one["calls"] / one["seconds"] for one in best)
            percentiles = quantiles([latency for one in best for latency in one["latencies"]], n=100)
            cpu_us = fmean(one["cpu"] / one["calls"] for one in best) * 1e6
            share = f"{rates[name] / rates['client']:.2f}"
            cells = (f"{percentiles[49] * 1e3:.2f}", f"{percentiles[98] * 1e3:.2f}", f"{cpu_us:.0f}", share)
            table.add(str(window), NAMES[name], f"{rates[name]:,.0f}", *cells)
        if window == 1:
            table.require(
                rates["client"] * 1.1 >= rates["stub"], "one caller is more than a tenth slower than the stub"
            )
        others = max(rate for name, rate in rates.items() if name not in {"client", "stub"})
        if window == max(measured):
            table.require(rates["client"] > others, "with many callers a peer was ahead of client.check")
            table.require(
                rates["client"] >= 8 * rates["stub"],
                f"with {window} callers {rates['client'] / rates['stub']:.1f} times the stub; the aim is 8",
            )
    return table


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _await_listening(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    until = time.monotonic() + harness.PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    log.seek(0)
    raise RuntimeError(f"Cerbos does not listen:\n{log.read().decode()[-4000:]}")


def main() -> int:
    """Prints what each did, and the table. 1: an aim was missed; 2: something is not installed."""
    if not Path(PYTHON).exists() or not CERBOS.exists():
        sys.stderr.write(
            "the peers are not installed: `make bench-peers` does that, and needs npm for Cerbos's server\n"
        )
        return 2
    telemetry.configure("warning", "text")
    began = time.monotonic()
    print(__doc__)
    missed = []
    for table in run(Cores.of_this_machine()):
        print(f"{table.text()}\n")
        missed += table.missed
    print(f"({time.monotonic() - began:.0f} s, load average {Path('/proc/loadavg').read_text().split()[0]})")
    for sentence in missed:
        print(f"MISSED: {sentence}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
