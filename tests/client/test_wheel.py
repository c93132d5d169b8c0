"""The client's wheel installs alone, holds what it should and no more, and checks a token in the ten lines of the README.

What the wheel needs is installed from requirements-newest.lock,
whose hashes pip insists on, so that a dependency beyond these fails the installation.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from doorward.v1 import account_admin_pb2, token_admin_pb2
from tests.support.wire import ask, fresh_id, on

if TYPE_CHECKING:
    from tests.support.server import ServerProcess, Stubs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "check_token.py"
LOCK = ROOT / "requirements-newest.lock"
# What every new environment has, or may have, before anything is installed.
BROUGHT_BY_VENV = {"pip", "setuptools", "wheel"}
# pip's own settings (where packages come from) stay; nothing of this Python may reach into another one.
PIP_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def build_wheel(package: str, target: Path) -> Path:
    """The wheel of `client/` or `server/`."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", target],
        cwd=ROOT / package,
        check=True,
        capture_output=True,
    )
    (wheel,) = target.glob("*.whl")
    return wheel


def files_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources_of(package: Path) -> set[str]:
    """What should be in the wheel of `package`, by the names it has there."""
    return {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def client_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel `doorward`."""
    return build_wheel("client", tmp_path_factory.mktemp("client-wheel"))


@pytest.fixture(scope="module")
def server_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel `doorward-server`."""
    return build_wheel("server", tmp_path_factory.mktemp("server-wheel"))


@pytest.fixture(scope="module")
def fresh_python(client_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel and what it needs."""
    base = tmp_path_factory.mktemp("fresh")
    python = base / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", base / "environment"], check=True, env=PIP_ENVIRONMENT)
    digest = hashlib.sha256(client_wheel.read_bytes()).hexdigest()
    requirements = base / "requirements.txt"
    requirements.write_text(f"-r {LOCK}\n{client_wheel} --hash=sha256:{digest}\n")
    installed = subprocess.run(
        [
            python,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            "--require-hashes",
            "-r",
            requirements,
        ],
        env=PIP_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    return python


def run_in(python: Path, *arguments: str | Path, environment: dict[str, str] | None = None) -> str:
    """What the fresh interpreter prints; nothing around it is seen by it, and a warning is an error."""
    done = subprocess.run(
        [python, "-I", "-W", "error", *arguments],
        env={"PATH": os.defpath, **(environment or {})},
        cwd=python.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@dataclass
class Warehouse:
    """The project that the example asks about, in an account of this module's own."""

    stubs: Stubs
    server: ServerProcess
    account_id: str

    def issue(self, permission_set: str) -> token_admin_pb2.IssueTokenResponse:
        request = token_admin_pb2.IssueTokenRequest(
            account_id=self.account_id, display_name="Example", grants=[on(permission_set, "warehouse")]
        )
        return ask(self.stubs.tokens.IssueToken, request, self.stubs.admin)

    def check_with(self, python: Path, secret: str) -> str:
        """What the example says of `secret`."""
        environment = {
            "DOORWARD_ADDRESS": self.server.address,
            "DOORWARD_TOKEN_FILE": str(self.server.caller_token_file),
            "DOORWARD_SECRET": secret,
        }
        return run_in(python, EXAMPLE, environment=environment)


@pytest.fixture(scope="module")
def warehouse(server: ServerProcess, stubs: Stubs) -> Warehouse:
    """The account with the project."""
    account_id = fresh_id("acc")
    account = account_admin_pb2.PutAccountRequest(account_id=account_id, display_name="Example", plan="team")
    ask(stubs.accounts.PutAccount, account, stubs.admin)
    project = account_admin_pb2.PutProjectRequest(account_id=account_id, project_id="warehouse", display_name="W")
    ask(stubs.accounts.PutProject, project, stubs.admin)
    return Warehouse(stubs, server, account_id)


def test_the_wheel_holds_the_client_whole_and_nothing_else(client_wheel: Path) -> None:
    files = files_in(client_wheel)
    assert {name for name in files if ".dist-info/" not in name} == sources_of(ROOT / "client" / "doorward")
    assert {"doorward/py.typed", "doorward/v1/authorizer_pb2.pyi", "doorward/v1/authorizer_pb2_grpc.pyi"} <= files
    assert {name.rpartition("/")[2] for name in files if "/licenses/" in name} == {"LICENSE"}


def test_the_wheel_needs_what_the_design_says_and_no_more(client_wheel: Path) -> None:
    with zipfile.ZipFile(client_wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    needed = {
        line.removeprefix("Requires-Dist: ")
        for line in metadata.splitlines()
        if line.startswith("Requires-") and "; extra ==" not in line
    }
    assert needed == {
        "Requires-Python: >=3.11",
        "googleapis-common-protos>=1.70",
        "grpcio>=1.76",
        "protobuf<8,>=6.31.1",
    }


def test_it_is_installed_alone(fresh_python: Path) -> None:
    listed = "import importlib.metadata as m; print(*(d.name.lower().replace('_', '-') for d in m.distributions()))"
    installed = set(run_in(fresh_python, "-c", listed).split()) - BROUGHT_BY_VENV
    locked = {line.partition("==")[0] for line in LOCK.read_text().splitlines() if "==" in line}
    assert installed == {"doorward"} | locked


def test_ten_lines_check_a_token_that_is_allowed(warehouse: Warehouse, fresh_python: Path) -> None:
    assert warehouse.check_with(fresh_python, warehouse.issue("job_admin").secret) == "allowed"


def test_ten_lines_check_a_token_that_is_denied(warehouse: Warehouse, fresh_python: Path) -> None:
    secret = warehouse.issue("metadata_only").secret
    assert warehouse.check_with(fresh_python, secret) == "denied: PERMISSION_NOT_GRANTED"


def test_ten_lines_check_a_token_that_was_revoked(warehouse: Warehouse, fresh_python: Path) -> None:
    issued = warehouse.issue("job_admin")
    revoke = token_admin_pb2.RevokeTokenRequest(token_id=issued.token.token_id, reason="lost")
    ask(warehouse.stubs.tokens.RevokeToken, revoke, warehouse.stubs.admin)
    assert warehouse.check_with(fresh_python, issued.secret) == "denied: TOKEN_REVOKED"


DIALECTS = """
import asyncio, os
from pathlib import Path
from doorward import aio, threads
address, credential = os.environ["DOORWARD_ADDRESS"], Path(os.environ["DOORWARD_TOKEN_FILE"])
secret = os.environ["DOORWARD_SECRET"]
def asked(authorizer):
    return authorizer.check(secret, "jobs:write", project_id="warehouse")
async def in_a_loop():
    async with aio.AuthorizerClient(address, credential=credential, timeout=30.0) as authorizer:
        found = [await asked(authorizer)]
        return found + list(await asyncio.gather(*(asked(authorizer) for _ in range(200))))
with threads.AuthorizerClient(address, credential=credential, timeout=30.0) as authorizer:
    print(asked(authorizer).allowed, all(asyncio.run(in_a_loop())))
"""


def test_both_dialects_check_a_token_with_the_newest_runtime(warehouse: Warehouse, fresh_python: Path) -> None:
    environment = {
        "DOORWARD_ADDRESS": warehouse.server.address,
        "DOORWARD_TOKEN_FILE": str(warehouse.server.caller_token_file),
        "DOORWARD_SECRET": warehouse.issue("job_admin").secret,
    }
    assert run_in(fresh_python, "-c", DIALECTS, environment=environment) == "True True"


def test_they_are_ten_lines() -> None:
    assert len([line for line in EXAMPLE.read_text().splitlines() if line.strip()]) == 10


def test_the_servers_wheel_holds_its_catalog_and_its_migrations(server_wheel: Path) -> None:
    files = files_in(server_wheel)
    assert {name for name in files if ".dist-info/" not in name} == sources_of(ROOT / "server" / "doorward_server")
    assert {
        "doorward_server/catalog/permission_sets.toml",
        "doorward_server/storage/migrations/0001_initial.sql",
    } <= files
    with zipfile.ZipFile(server_wheel) as archive:
        (name,) = (name for name in files if name.endswith(".dist-info/entry_points.txt"))
        assert "doorward = doorward_server.cli.main:main" in archive.read(name).decode()


LOCALLY = """
import asyncio, os
from pathlib import Path
from doorward import aio, threads
address, credential = os.environ["DOORWARD_ADDRESS"], Path(os.environ["DOORWARD_TOKEN_FILE"])
secret = os.environ["DOORWARD_SECRET"]
def asked(authorizer):
    return authorizer.check(secret, "jobs:write", project_id="warehouse")
async def in_a_loop():
    async with aio.LocalAuthorizer(address, credential=credential, timeout=30.0) as authorizer:
        await authorizer.wait_ready()
        found = await asked(authorizer)
    return found
with threads.LocalAuthorizer(address, credential=credential, timeout=30.0) as authorizer:
    authorizer.wait_ready()
    print(*((found.allowed, found.decided_by) for found in (asked(authorizer), asyncio.run(in_a_loop()))))
"""


def test_both_dialects_decide_by_themselves_with_the_newest_runtime(warehouse: Warehouse, fresh_python: Path) -> None:
    environment = {
        "DOORWARD_ADDRESS": warehouse.server.address,
        "DOORWARD_TOKEN_FILE": str(warehouse.server.caller_token_file),
        "DOORWARD_SECRET": warehouse.issue("job_admin").secret,
    }
    said = run_in(fresh_python, "-c", LOCALLY, environment=environment)
    assert said == "(True, <DecidedBy.HERE: 'HERE'>) (True, <DecidedBy.HERE: 'HERE'>)"
