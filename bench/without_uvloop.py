"""Runs a module as `python -m` would, where there is no uvloop: `python -m bench.without_uvloop MODULE ARGUMENTS`."""

from __future__ import annotations

import runpy
import sys
from typing import Any, cast


def main() -> None:
    # So that importing it raises ImportError.
    cast("dict[str, Any]", sys.modules)["uvloop"] = None
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
