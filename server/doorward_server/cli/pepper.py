"""`doorward pepper add | activate | retire | declare-lost | list`: the pepper keys' file, without a server (design section 4).

To change the key: `add` one, give the file to every server and restart them; `activate` it and do the same again. From
then on each digest moves to the new key when its secret is presented. `retire` the old one when none is left under it.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated

import typer

from doorward_server.cli import output
from doorward_server.cli.failure import fail
from doorward_server.cli.settings_options import takes_settings
from doorward_server.credentials import pepper
from doorward_server.settings import Settings

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The pepper keys, without a server.")

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="As pepper list shows it.")]


@app.command("add", short_help="Add a new key, or make the file.")
@takes_settings("data_dir", "pepper_file")
def add(settings: Settings) -> None:
    """Add a new key, which is not the current one yet; make the file, with one current key, where there is none.

    Give the changed file to every server, and restart them, before the key is activated.
    """
    path = settings.pepper_path
    with _telling_failures():
        if not path.exists():
            output.say(f"Made {path} with the key {pepper.create(path).current_id}, which is current.")
            return
        key_id = pepper.add(path)
    output.say(f"Added the key {key_id} to {path}. When every server has the file: doorward pepper activate {key_id}")


@app.command("activate", short_help="Make a key the current one.")
@takes_settings("data_dir", "pepper_file")
def activate(settings: Settings, key_id: KeyId) -> None:
    """Make a key the current one: new digests are made under it, once a server has been restarted with the file."""
    with _telling_failures():
        pepper.activate(settings.pepper_path, key_id)
    output.say(
        f"The key {key_id} is current in {settings.pepper_path}. Give the file to every server, and restart them."
    )


@app.command("retire", short_help="Take a key out of the file.")
@takes_settings("data_dir", "pepper_file", "database_url", "database_pooler", "accept_failover_loss")
def retire(settings: Settings, key_id: KeyId) -> None:
    """Take a key out of the file.

    Refused for the current key, and while the digests of secrets that may still be presented depend on it. The database
    is asked: the one that --database-url names, else the data directory's own.
    """
    path = settings.pepper_path
    with _telling_failures():
        ring = pepper.load(path)
    if key_id in ring.key_ids and key_id != ring.current_id:  # else `pepper.retire` says what is wrong
        _forget(settings, key_id)
    with _telling_failures():
        pepper.retire(path, key_id)
    output.say(f"Retired the key {key_id}: {path} no longer has it. Give the file to every server, and restart them.")


@app.command("declare-lost", short_help="Go on without a key that is lost for good.")
@takes_settings("data_dir", "pepper_file", "database_url", "database_pooler", "accept_failover_loss")
def declare_lost(settings: Settings, key_id: KeyId) -> None:
    """Go on without a key that is lost for good: no server insists on it any more. Makes a new file where there is none.

    First look for a copy: on another server, in a backup. Without the key every secret whose digest was made under it
    is proved by bcrypt the next time it is presented, once, some twenty a second; until then its checks wait, and those
    beyond the queue are refused. Nothing is revoked, and no secret changes. Refused while the file has the key.
    """
    from doorward_server.cli.offline import declare_pepper_lost  # noqa: PLC0415 - a client command need not load it

    path = settings.pepper_path
    with _telling_failures():
        if path.exists() and key_id in pepper.load(path).key_ids:
            fail(
                f"the key {key_id} is not lost: {path} has it. A key that nothing depends on is retired, not declared lost"
            )
        if not path.exists():
            # Before the database lets go of the key: whatever happens in between, no server starts with the wrong keys.
            output.say(f"Made {path} with the key {pepper.create(path).current_id}, which is current.")
    dependents = declare_pepper_lost(settings, key_id)
    output.say(
        f"The key {key_id} counts as lost. Proved by bcrypt when they are presented next: {dependents.token_secrets} secrets "
        f"of tokens, {dependents.operators} of operators.",
        f"Give {path} to every server, and restart them.",
    )


@app.command("list", short_help="List the keys by id.")
@takes_settings("data_dir", "pepper_file")
def list_(settings: Settings, json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the file's keys by id, with the fingerprints that the database knows them by. Never a key."""
    with _telling_failures():
        ring = pepper.load(settings.pepper_path)
    fingerprints = ring.fingerprints()
    if json_:
        keys = [
            {"key_id": key_id, "current": key_id == ring.current_id, "fingerprint": fingerprints[key_id]}
            for key_id in ring.key_ids
        ]
        output.write(json.dumps({"pepper_file": str(settings.pepper_path), "keys": keys}, indent=2) + "\n")
        return
    rows = [(key_id, "current" if key_id == ring.current_id else "", fingerprints[key_id]) for key_id in ring.key_ids]
    output.say(output.table(("KEY", "", "FINGERPRINT"), rows))


def _forget(settings: Settings, key_id: str) -> None:
    """Before the file is changed: a server insists on every key that the database knows."""
    from doorward_server.cli.offline import forget_pepper_key  # noqa: PLC0415 - a client command need not load it

    dependents = forget_pepper_key(settings, key_id)
    if dependents.any:
        fail(
            f"the key {key_id} is needed: digests under it belong to secrets that may still be presented (of tokens: "
            f"{dependents.token_secrets}, of operators: {dependents.operators}). A digest moves to the current key when its "
            "secret is presented to a server that has it; rotate or revoke what nobody presents, then repeat the command"
        )


@contextlib.contextmanager
def _telling_failures() -> Iterator[None]:
    try:
        yield
    except pepper.PepperInvalid as invalid:
        fail(str(invalid))
