"""`make bench`: measures, and prints the tables that docs/performance.md has. ARGS="check core" selects parts.

Exits 1 if a target was missed, and says which. Only loopback, only temporary directories; what it starts it stops.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from typing import TYPE_CHECKING, Final

import google.protobuf
import grpc

from bench import check, client, core, lists, local, propagation, runtimes, scale, thousand, watchers
from bench.harness import Cores
from doorward_server import telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.report import Table

PARTS: Final[dict[str, Callable[[Cores], list[Table]]]] = {
    "core": lambda _: core.run(),
    "check": check.run,
    "client": client.run,
    "propagation": propagation.run,
    "scale": scale.run,
    "lists": lists.run,
    "local": local.run,
    "watchers": watchers.run,
}


def main() -> int:
    """Runs the parts that were asked for, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", help=f"what to measure: {', '.join(PARTS)} (all if none is named), or runtimes, thousand"
    )
    parser.add_argument("--python", action="append", default=[], help="for runtimes: an interpreter; may be repeated")
    parser.add_argument("--watchers", type=int, default=1000, help="for thousand: how many, an even number")
    parser.add_argument("--changes", type=int, default=100, help="for thousand: changes a second")
    asked = parser.parse_args()
    pythons: list[str] = asked.python
    parts: dict[str, Callable[[Cores], list[Table]]] = {
        **PARTS,
        "runtimes": lambda on: runtimes.run(on, pythons),
        "thousand": lambda on: thousand.run(on, asked.watchers, asked.changes),
    }
    chosen = asked.parts or list(PARTS)
    if unknown := set(chosen) - set(parts):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    telemetry.configure("warning", "text")  # of the PostgreSQL that is started here for COPY
    cores = Cores.of_this_machine()
    versions = f"Python {platform.python_version()}, grpcio {grpc.__version__}, protobuf {google.protobuf.__version__}"
    print(
        f"{versions}, {platform.machine()}, {os.cpu_count()} cores; the server has core {min(cores.server)} to itself"
    )
    missed: list[str] = []
    for name in chosen:
        began = time.monotonic()
        for table in parts[name](cores):
            print(f"\n{table.text()}", flush=True)
            missed += table.missed
        print(f"\n({name}: {time.monotonic() - began:.0f} s, load average {os.getloadavg()[0]:.1f})", flush=True)
    for sentence in missed:
        print(f"MISSED: {sentence}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
