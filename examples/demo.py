"""The story of a service account token in a minute, on three replicas: `make demo`.

Starts a server with a PostgreSQL of its own in a temporary directory and two more replicas on the same database, all on
loopback, then says and does with the `doorward` command what an administrator would. Leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DOORWARD = (sys.executable, "-m", "doorward_server.cli.main")
PATIENCE_S = 60.0
LISTENS = "Doorward listens on "


class Demo:
    """Three replicas, and what is done with them."""

    def __init__(self, data_dir: Path, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DOORWARD_"))}
        self._environment = {**own, "DOORWARD_DATA_DIR": str(data_dir), "DOORWARD_ADDRESS": addresses[0]}

    def run(self, *arguments: str, show: bool = True) -> Any:
        """Runs a `doorward` command and gives its answer; `show` prints the command as one would type it."""
        if show:
            print(f"  $ doorward {shlex.join(arguments)}")
        done = subprocess.run(
            [*DOORWARD, *arguments, "--json"], env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"doorward {arguments[0]} failed: {done.stderr}")
        return json.loads(done.stdout)

    def check(self, secret: str, permission: str, place: str, resource_id: str, address: str | None = None) -> str:
        """What a check is answered: allowed, or why not. The secret goes through the environment, never an argument."""
        arguments = ["check", "--permission", permission, f"--{place}", resource_id]
        at = [] if address is None else ["--address", address]
        environment = {**self._environment, "DOORWARD_SECRET": secret}
        done = subprocess.run(
            [*DOORWARD, *arguments, *at, "--json"], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode not in {0, 1}:
            raise SystemExit(f"doorward check failed: {done.stderr}")
        answer = json.loads(done.stdout)
        return "allowed" if answer.get("allowed") else f"denied, {answer['reason'].removeprefix('DENY_REASON_')}"

    def show_check(self, whose: str, secret: str, permission: str, place: str, resource_id: str) -> None:
        """Asks the first replica, and prints question and answer."""
        answer = self.check(secret, permission, place, resource_id)
        print(f"    {whose:<14} {permission:<16} {place} {resource_id:<10} -> {answer}")

    def everywhere(self, whose: str, secret: str, permission: str, project_id: str) -> None:
        """Asks every replica."""
        answers = [self.check(secret, permission, "project", project_id, address) for address in self._addresses]
        for number, answer in enumerate(answers, 1):
            print(f"    {whose:<14} {permission:<16} project {project_id:<10} at replica {number} -> {answer}")

    def tell(self) -> None:
        """The story."""
        print("\n1. Two customers, one on each plan, and their projects")
        self.run("account", "put", "acme", "--display-name", "Acme Inc.", "--plan", "enterprise")
        self.run("account", "put", "solo", "--display-name", "Solo Ltd.", "--plan", "team")
        for account_id, project_id in (("acme", "warehouse"), ("acme", "marketing"), ("solo", "shop")):
            self.run("project", "put", project_id, "--account", account_id, "--display-name", project_id.title())

        print("\n2. Tokens: narrow ones. Each secret is shown once; here it goes straight to its integration")
        ci = self._issue("acme", "nightly jobs", "job_admin:warehouse", "--ttl", "90d")
        bi = self._issue("acme", "dashboards", "metadata_only:*")
        owner = self._issue("solo", "terraform", "owner:*")

        print("\n3. Checks, as the platform's services ask them at every request")
        self.show_check("nightly jobs", ci["secret"], "jobs:write", "project", "warehouse")
        self.show_check("nightly jobs", ci["secret"], "jobs:write", "project", "marketing")
        self.show_check("nightly jobs", ci["secret"], "billing:read", "account", "acme")
        self.show_check("dashboards", bi["secret"], "metadata:read", "project", "marketing")
        self.show_check("dashboards", bi["secret"], "jobs:read", "project", "marketing")
        self.show_check("terraform", owner["secret"], "billing:write", "account", "solo")
        self.show_check("terraform", owner["secret"], "jobs:write", "project", "warehouse")
        self.show_check("somebody", f"{ci['secret'][:-1]}x", "jobs:write", "project", "warehouse")

        print("\n4. Rotation with an overlap: both secrets work until it ends")
        rotated = self.run("token", "rotate", _id(ci), "--overlap", "1h")
        self.show_check("old secret", ci["secret"], "jobs:write", "project", "warehouse")
        self.show_check("new secret", rotated["secret"], "jobs:write", "project", "warehouse")

        print("\n5. Revocation. Before:")
        self.everywhere("nightly jobs", rotated["secret"], "jobs:write", "warehouse")
        revoked = self.run("token", "revoke", _id(ci), "--reason", "contractor left")
        propagation = revoked["propagation"]
        print(
            f"    returned after {_milliseconds(propagation['elapsed'])}: revision {propagation['revision']}, ", end=""
        )
        print(f"confirmed by {propagation['replicas_confirmed']} replicas")
        self.everywhere("nightly jobs", rotated["secret"], "jobs:write", "warehouse")
        print("\nNo replica says yes any more, from the moment that the revocation has returned.")

    def _issue(self, account_id: str, name: str, grant: str, *more: str) -> Any:
        return self.run("token", "issue", "--account", account_id, "--display-name", name, "--grant", grant, *more)


def _id(issued: Any) -> str:
    token_id: str = issued["token"]["token_id"]
    return token_id


def _milliseconds(duration: str) -> str:
    return f"{float(duration.removesuffix('s')) * 1000:.1f} ms"


@contextlib.contextmanager
def _server(data_dir: Path, log: Path, arguments: Sequence[str] = ()) -> Iterator[str]:
    """A server process; yields the address that it says it listens on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DOORWARD_"))}
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            [*DOORWARD, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            env=environment,
            start_new_session=True,
        )
    try:
        output = process.stdout
        first = "" if output is None else output.readline().strip()
        if not first.startswith(LISTENS):
            raise SystemExit(f"a server did not start:\n{log.read_text(errors='replace')}")
        yield first.removeprefix(LISTENS)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def main() -> None:
    """Runs the demo."""
    began = time.monotonic()
    print("Doorward: a server with its own PostgreSQL, and two replicas on the same database.")
    with tempfile.TemporaryDirectory(prefix="dw-demo-") as scratch, contextlib.ExitStack() as servers:
        first_dir = Path(scratch, "one")
        addresses = [servers.enter_context(_server(first_dir, Path(scratch, "one.log")))]
        for name in ("two", "three"):
            joining = ("--database-url", (first_dir / "database.url").read_text().strip())
            pepper = ("--pepper-file", str(first_dir / "pepper.keys"))
            running = _server(Path(scratch, name), Path(scratch, f"{name}.log"), (*joining, *pepper))
            addresses.append(servers.enter_context(running))
        Demo(first_dir, addresses).tell()
    print(f"({time.monotonic() - began:.0f} s; everything is stopped and removed)")


if __name__ == "__main__":
    main()
