"""Runs a module as `python -m` would, with uvloop as asyncio's event loop: `python -m bench.on_uvloop MODULE ARGUMENTS`."""

from __future__ import annotations

import asyncio
import importlib
import runpy
import sys


def main() -> None:
    uvloop = importlib.import_module("uvloop")
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
