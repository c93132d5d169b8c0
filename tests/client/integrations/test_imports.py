"""A guard is imported only when it is used, and needs nothing but what it guards."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What is None in sys.modules cannot be imported.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("fastapi", "starlette", "pydantic", "uvicorn"), None))
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("guard", ["grpc_aio", "grpc_threads", "asgi"])
def test_a_guard_needs_no_framework(guard: str) -> None:
    done = python(f"from doorward.integrations.{guard} import *; Guard, Needs, OPEN")
    assert done.returncode == 0, done.stderr


def test_the_guard_of_a_framework_needs_that_framework() -> None:
    done = python("import doorward.integrations.fastapi")
    assert "fastapi" in done.stderr.splitlines()[-1]


def test_a_client_imports_no_guard() -> None:
    code = "import doorward.aio, doorward.threads; print([m for m in sys.modules if m.startswith('doorward.integrations')])"
    assert python(code).stdout.strip() == "[]"
