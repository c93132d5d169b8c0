"""The generated code beside `examples/jobs.proto` is what it generates, and docs/guards.md says what is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from doorward.decisions import Decision, DenyReason
from doorward.errors import ClientClosed
from doorward.integrations._http import response_of
from doorward.integrations._refusals import (
    FAILED,
    NO_RULE,
    PATH_UNCLEAR,
    Kind,
    Refusal,
    denied,
    presented,
    unclear,
    undecided,
)
from doorward.integrations._rpc import status_of
from tests.repository.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

# The oldest supported generator, as for the contract itself (tools/generate.py).
GENERATOR = ROOT / ".venv-proto" / "bin"
COMMAND = [
    str(GENERATOR / "python"),
    "-m",
    "grpc_tools.protoc",
    "--proto_path=.",
    *(f"--plugin=protoc-gen-{name}={GENERATOR / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")),
    *(f"--{output}={{target}}" for output in ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")),
    "examples/jobs.proto",
]


def test_the_generated_code_of_the_examples_is_current(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [part.replace("{target}", str(tmp_path)) for part in COMMAND]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    generated = {path.name: path.read_bytes() for path in (tmp_path / "examples").iterdir()}
    committed = {path.name: path.read_bytes() for path in (ROOT / "examples").glob("jobs_pb2*.py*")}
    assert set(generated) == set(committed)
    # What to do: run the command with the repository in place of {target}.
    assert [name for name in generated if generated[name] != committed[name]] == []


# ---- the page

PAGE = (ROOT / "docs" / "guards.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CODES = {
    Kind.UNAUTHENTICATED: ("401", "UNAUTHENTICATED"),
    Kind.DENIED: ("403", "PERMISSION_DENIED"),
    Kind.UNCLEAR: ("400", "INVALID_ARGUMENT"),
    Kind.UNDECIDED: ("503", "UNAVAILABLE"),
    Kind.FAILED: ("500", "INTERNAL"),
}


def every_refusal() -> list[Refusal]:
    """One of each reason that stands in the code as a constant, or is made for every reason of a decision."""
    return [
        *(presented(reason) for reason in ("CREDENTIAL_MISSING", "CREDENTIAL_REPEATED", "CREDENTIAL_MALFORMED")),
        *(denied(Decision(False, reason, "", "", ""), "jobs:read") for reason in DenyReason),
        NO_RULE,
        unclear("project_id"),
        PATH_UNCLEAR,
        undecided(ClientClosed()),
        FAILED,
    ]


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_the_snippets_of_the_page_run(block: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKS[block]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_table_of_the_page_is_what_the_guards_answer() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d*) ?\| ([A-Z_]*) ?\| .+ \|$", PAGE, re.MULTILINE)
    told = {reason: (status, code) for reason, status, code in rows}
    wanted = {refusal.reason: CODES[refusal.kind] for refusal in every_refusal()}
    assert set(told) == {*wanted, "RESOURCE_CHANGED"} - {"UNKNOWN"}
    only_of_one = {"RESOURCE_CHANGED": ("", "PERMISSION_DENIED"), "PATH_UNCLEAR": ("400", "")}
    assert told == {reason: only_of_one.get(reason) or wanted[reason] for reason in told}
    for refusal in every_refusal():
        status, code = CODES[refusal.kind]
        assert (str(response_of(refusal, "r").status), status_of(refusal)[0].name) == (status, code)


def test_the_page_shows_the_message_of_a_refusal_as_it_is() -> None:
    content = response_of(
        denied(Decision(False, DenyReason.PROJECT_NOT_GRANTED, "", "", ""), "jobs:write"), "r"
    ).content
    assert list(content) == ["error", "reason", "message", "permission"]
    shown = re.sub(r"\s+", " ", PAGE)
    assert json.dumps({**content, "message": "…"}, ensure_ascii=False) in shown
