"""The contract from elsewhere: a Node client that reads it at run time, and `buf curl`, both issue, check and revoke.

The Node test runs where `node` is and npm finds its packages, from whatever registry it is set up with; elsewhere it is left
out, and the report says so (`tests/support/programs.py`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.server import PATIENCE_S, clean_environment

if TYPE_CHECKING:
    from tests.support.server import ServerProcess
    from tests.support.wire import OwnAccount

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "node"
INSTALLING_S = 110.0


# ---- Node


@pytest.fixture
def node_example(tmp_path: Path) -> Path:
    """The example with its packages installed, in a copy, beside the contract."""
    copy = tmp_path / "examples" / "node"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=INSTALLING_S, check=False)
    assert done.returncode == 0, done.stderr
    assert not (copy / "package-lock.json").exists()
    return copy


@pytest.mark.needs_node("@grpc/grpc-js", "@grpc/proto-loader")
def test_a_node_client_issues_checks_and_revokes(
    node_example: Path, server: ServerProcess, account: OwnAccount
) -> None:
    environment = {
        "DOORWARD_ADDRESS": server.address,
        "DOORWARD_OPERATOR_FILE": str(server.operator_token_file),
        "DOORWARD_TOKEN_FILE": str(server.caller_token_file),
    }
    done = subprocess.run(
        ["node", "check.mjs", account.account_id, account.project_ids[0]],
        cwd=node_example,
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (token_id,) = account.token_ids()
    assert done.stdout.splitlines() == [
        f"issued {token_id}",
        "allowed",
        "revoked: REVOKED",
        "denied: TOKEN_REVOKED",
    ]


# ---- buf curl


def curl(server: ServerProcess, credential: str, method: str, request: dict[str, Any]) -> Any:
    """What a call answers; the contract is read from protos/, not from the server."""
    command = [str(Path(sys.executable).parent / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    command += ["--schema", "protos", "--header", f"authorization: Bearer {credential}"]
    command += ["--data", "@-", f"http://{server.address}/doorward.v1.{method}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_buf_curl_issues_checks_and_revokes(server: ServerProcess, account: OwnAccount) -> None:
    project_id = account.project_ids[0]
    issued = curl(
        server,
        server.operator_credential,
        "TokenAdmin/IssueToken",
        {
            "accountId": account.account_id,
            "displayName": "from buf",
            "grants": [{"permissionSet": "job_admin", "projectIds": [project_id]}],
        },
    )
    ask = {"secret": issued["secret"], "permission": "jobs:write", "projectId": project_id}
    before = curl(server, server.caller_credential, "Authorizer/Check", ask)
    revoke = {"tokenId": issued["token"]["tokenId"], "reason": "the end"}
    revoked = curl(server, server.operator_credential, "TokenAdmin/RevokeToken", revoke)
    after = curl(server, server.caller_credential, "Authorizer/Check", ask)

    assert before["allowed"] is True
    assert revoked["token"]["state"] == "TOKEN_STATE_REVOKED"
    assert revoked["propagation"]["replicasConfirmed"]
    assert after["reason"] == "DENY_REASON_TOKEN_REVOKED"
    assert "allowed" not in after
