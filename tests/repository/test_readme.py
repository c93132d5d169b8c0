"""What the README shows is what happens: the commands run as printed, the snippets are the example.

The server here is one of the README's own, with its data in `./doorward-data`; only its address is not the default one.
grpcurl is no Python package, so `buf curl` stands in for it; the calls and their JSON are the README's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.repository.sources import ROOT
from tests.support.server import clean_environment, start_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import ServerProcess

README = (ROOT / "README.md").read_text(encoding="utf-8")

GRPCURL = """\
#!/usr/bin/env bash
set -euo pipefail
[[ "$1 $2 $3 $5 $6" == "-plaintext -expand-headers -H -d @" ]]
header="${4//'${DOORWARD_TOKEN}'/$DOORWARD_TOKEN}"
exec buf curl --protocol grpc --http2-prior-knowledge -H "$header" -d @- "http://$7/$8"
"""


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def block_with(beginning: str) -> str:
    """The README's shell block with a line that begins so."""
    (found,) = (block for block in blocks(README, "sh") if re.search(rf"^{re.escape(beginning)}", block, re.MULTILINE))
    return found


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server as `make run` starts it: its data is in `doorward-data` of the directory that the commands run in."""
    base = tmp_path_factory.mktemp("readme")
    running = start_server(base / "doorward-data", base / "scratch")
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture
def reader(own_server: ServerProcess) -> dict[str, str]:
    """The environment of a reader whose server is not at the default address."""
    home = own_server.data_dir.parent
    programs = home / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "grpcurl").write_text(GRPCURL)
    (programs / "grpcurl").chmod(0o700)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return clean_environment({"DOORWARD_ADDRESS": own_server.address, "PATH": path, "HOME": str(home)})


def run(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_commands_do_what_is_written_beside_them(reader: dict[str, str]) -> None:
    outcomes = []
    for line in block_with("doorward ").splitlines():
        command, _, wanted = (part.strip() for part in line.partition("  # "))
        done = run(command, reader)
        assert wanted in done.stdout, f"{command}\n{done.stdout}{done.stderr}"
        assert done.returncode == (1 if wanted.startswith("denied") else 0), f"{command}\n{done.stderr}"
        outcomes.append(wanted)
    assert [outcome for outcome in outcomes if outcome] == [
        "allowed",
        "denied: PERMISSION_NOT_GRANTED",
        "True everywhere",
        "denied: TOKEN_REVOKED",
    ]


def test_the_calls_do_what_is_written_below_them(reader: dict[str, str]) -> None:
    script = block_with("call ").replace("127.0.0.1:50051", reader["DOORWARD_ADDRESS"])
    done = run(script, reader)
    assert done.returncode == 0, done.stderr
    told = [
        f'"{said}'
        for said in re.findall(r'"(allowed": true|state": "TOKEN_STATE_REVOKED"|reason": "DENY\w+")', done.stdout)
    ]
    assert told == ['"allowed": true', '"state": "TOKEN_STATE_REVOKED"', '"reason": "DENY_REASON_TOKEN_REVOKED"']
    assert told[0] in README
    assert told[2] in README


@pytest.mark.parametrize("page", ["README.md", "client/README.md"])
def test_the_ten_lines_are_those_of_the_example(page: str) -> None:
    shown = blocks((ROOT / page).read_text(encoding="utf-8"), "python")
    assert shown == [(ROOT / "examples" / "check_token.py").read_text(encoding="utf-8")]


def test_the_example_runs_as_the_readme_says(reader: dict[str, str]) -> None:
    (line,) = re.findall(r"`(DOORWARD_SECRET=.*? python examples/check_token\.py)`", README)
    (allowed, denied) = re.findall(r"prints `(.*?)` for .*?`(denied: .*?)`", README, re.DOTALL)[0]
    commands = block_with("doorward ").replace("nightly.token", "second.token").splitlines()
    before = [command for command in commands if not command.startswith(("doorward check", "doorward token revoke"))]
    (revoke,) = (command for command in commands if command.startswith("doorward token revoke"))
    ask = line.replace("nightly.token", "second.token").replace("examples/", f"{ROOT}/examples/")
    done = run("\n".join([*before, ask, revoke, ask]), reader)
    assert done.returncode == 0, done.stderr
    answers = [told for told in done.stdout.splitlines() if told.startswith(("allowed", "denied"))]
    assert answers == [allowed, denied]
