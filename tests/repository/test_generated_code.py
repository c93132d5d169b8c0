"""The committed code in `client/doorward/v1/` is what the contract generates, and runs with the oldest and newest runtimes.

The two runtimes live in environments of their own, `.venv-proto` and `.venv-newest`; `make test` makes both.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = {"oldest": ROOT / ".venv-proto", "newest": ROOT / ".venv-newest"}

# Run by another interpreter: imports every module, sends a message through bytes, builds every stub. Warnings are errors.
USES_THE_GENERATED_CODE = """
import importlib, pathlib, sys
import google.protobuf, grpc, grpc.aio
import doorward.v1

modules = {path.stem for path in pathlib.Path(doorward.v1.__path__[0]).glob("*_pb2*.py")}
loaded = {name: importlib.import_module(f"doorward.v1.{name}") for name in modules}
assert {"types_pb2", "error_reason_pb2", "authorizer_pb2_grpc"} <= modules, modules

types, authorizer, tokens = (loaded[f"{name}_pb2"] for name in ("types", "authorizer", "token_admin"))
grant = types.Grant(permission_set="job_admin", project_ids=["warehouse", "marketing"])
request = tokens.IssueTokenRequest(account_id="acme", display_name="Tokyo \\u6771\\u4eac", grants=[grant])
request.ttl.FromSeconds(3600)
again = tokens.IssueTokenRequest.FromString(request.SerializeToString())
assert again == request and list(again.grants[0].project_ids) == ["warehouse", "marketing"]
denied = authorizer.CheckResponse(reason=types.DENY_REASON_PROJECT_NOT_GRANTED)
assert authorizer.CheckResponse.FromString(denied.SerializeToString()).reason == 9

stubs = [getattr(module, name) for module in loaded.values() for name in vars(module) if name.endswith("Stub")]
assert len(stubs) == 4, stubs
with grpc.insecure_channel("127.0.0.1:1") as channel:
    for stub in stubs:
        stub(channel)
assert loaded["authorizer_pb2_grpc"].AuthorizerServicer.Check
print(google.protobuf.__version__, grpc.__version__)
"""

# What a caller writes, in both dialects: mypy must know each answer's type.
TYPED_CALLER = """
import grpc
import grpc.aio

from doorward.v1 import authorizer_pb2, authorizer_pb2_grpc, token_admin_pb2, token_admin_pb2_grpc, types_pb2


def ask(channel: grpc.Channel, secret: str) -> bool:
    stub = authorizer_pb2_grpc.AuthorizerStub(channel)
    request = authorizer_pb2.CheckRequest(secret=secret, permission="jobs:write", project_id="warehouse")
    return stub.Check(request, timeout=0.2, metadata=(("authorization", "Bearer x"),)).allowed


async def ask_async(channel: grpc.aio.Channel, secret: str) -> types_pb2.DenyReason.ValueType:
    stub = authorizer_pb2_grpc.AuthorizerStub(channel)
    request = authorizer_pb2.CheckRequest(secret=secret, permission="jobs:write", project_id="warehouse")
    return (await stub.Check(request, timeout=0.2)).reason


async def stream(channel: grpc.aio.Channel) -> list[authorizer_pb2.WatchResponse]:
    call = authorizer_pb2_grpc.AuthorizerStub(channel).Watch()
    await call.write(authorizer_pb2.WatchRequest())
    return [response async for response in call]


async def revoke(channel: grpc.aio.Channel) -> str:
    stub = token_admin_pb2_grpc.TokenAdminStub(channel)
    return (await stub.RevokeToken(token_admin_pb2.RevokeTokenRequest(token_id="x"))).propagation.revision
"""


def generator() -> ModuleType:
    """tools/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("tools_generate", ROOT / "tools" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python_of(environment: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [environment / "bin" / "python", "-W", "error", "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "client"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_committed_code_is_what_the_contract_generates() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_every_kind_of_difference_is_named(tmp_path: Path) -> None:
    generated, committed = tmp_path / "generated", tmp_path / "committed"
    for directory in (generated, committed):
        directory.mkdir()
        (directory / "same_pb2.py").write_text("same")
    (generated / "changed_pb2.py").write_text("new")
    (committed / "changed_pb2.py").write_text("old")
    (generated / "added_pb2.py").write_text("new")
    (committed / "gone_pb2.py").write_text("old")

    assert generator().differences(generated, committed) == [
        "differs: changed_pb2.py",
        "missing: added_pb2.py",
        "stale (generated from nothing): gone_pb2.py",
    ]


def test_installing_removes_what_is_stale_and_writes_what_differs(tmp_path: Path) -> None:
    generated, committed = tmp_path / "generated", tmp_path / "committed"
    shutil.copytree(ROOT / "client" / "doorward" / "v1", generated, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(generated, committed)
    (committed / "types_pb2.py").write_text("edited by hand")
    (committed / "gone_pb2.py").write_text("old")
    tool = generator()
    assert len(tool.differences(generated, committed)) == 2

    tool.install(generated, committed)

    assert tool.differences(generated, committed) == []


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_generated_code_runs_with_both_ends_of_the_supported_range(runtime: str) -> None:
    used = python_of(RUNTIMES[runtime], USES_THE_GENERATED_CODE)
    assert used.returncode == 0, used.stderr
    if runtime == "oldest":
        # What client/pyproject.toml promises; a newer one here would prove less than it says.
        assert used.stdout.split() == ["6.31.1", "1.76.0"]


def test_stubs_are_typed_for_both_dialects(tmp_path: Path) -> None:
    caller = tmp_path / "caller.py"
    caller.write_text(TYPED_CALLER)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", caller],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_wrong_use_of_a_stub_is_found_by_its_types(tmp_path: Path) -> None:
    caller = tmp_path / "caller.py"
    wrong = TYPED_CALLER.replace("return (await stub.Check(request, timeout=0.2)).reason", "return await stub.Check(1)")
    assert wrong != TYPED_CALLER
    caller.write_text(wrong)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", caller],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CheckRequest" in checked.stdout
    assert checked.returncode == 1
