"""Where a secret comes from, and where a new one goes: files for their owner's eyes alone, the environment, a pipe.

Never an argument: those stand in process lists and in the shell's history. No text that is read here appears in any
error. Called by `connection.py` (the credential), `check.py` (the secret to ask about), `token.py` and `operator.py`.
Design sections 4 and 9.
"""

import contextlib
import getpass
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from doorward.core.secret import Secret, SecretKind, find_secret
from doorward_server.cli.failure import fail

__all__ = [
    "CREDENTIAL_VARIABLE",
    "SECRET_VARIABLE",
    "SecretFile",
    "hand_over",
    "new_secret_file",
    "read_credential",
    "read_secret",
]

CREDENTIAL_VARIABLE: Final = "DOORWARD_TOKEN"
SECRET_VARIABLE: Final = "DOORWARD_SECRET"  # noqa: S105 - a variable's name
FIRST_CREDENTIAL: Final = "operator.token"
# A secret has 60 characters and the server takes 128; a file that was named by mistake is not read into memory.
_MOST_BYTES: Final = 4096

SecretFile = Annotated[
    Path | None,
    typer.Option(
        "--secret-file", metavar="FILE", help="Write the secret into this new file, mode 0600; do not print it."
    ),
]


def read_credential(token_file: Path | None, data_dir: Path) -> Secret:
    """The credential that calls are made with: of the file that was named, else DOORWARD_TOKEN, else the data directory's.

    Raises:
        typer.Exit: there is none, or it cannot be one; the option and what would be right were named.
    """
    if token_file is not None:
        return _credential(_read_private(token_file, "--token-file"), f"--token-file {token_file}")
    text = os.environ.get(CREDENTIAL_VARIABLE, "").strip()
    if text:
        return _credential(text, CREDENTIAL_VARIABLE)
    own = data_dir / FIRST_CREDENTIAL
    if not _is_there(own):
        fail(
            f"there is no credential to call with: no {own}, which a server's first start writes. Name the server's data "
            f"directory with --data-dir, a file that holds a credential with --token-file, or set {CREDENTIAL_VARIABLE}"
        )
    return _credential(_read_private(own, "--data-dir"), str(own))


def read_secret(secret_file: Path | None) -> str:
    """The secret to ask about: of --secret-file (`-`: standard input), else DOORWARD_SECRET, else standard input.

    Whatever it is, it goes to the server as it is: judging it is the server's work.

    Raises:
        typer.Exit: there is none, or it cannot be read.
    """
    if secret_file is not None and str(secret_file) != "-":
        return _required(_read_private(secret_file, "--secret-file"), f"--secret-file {secret_file}")
    text = os.environ.get(SECRET_VARIABLE, "").strip()
    if text and secret_file is None:
        return text
    return _required(_read_standard_input(), "standard input")


@contextlib.contextmanager
def new_secret_file(path: Path | None) -> Iterator[int | None]:
    """The descriptor of a new file, mode 0600, for a secret that is about to be made; None where no file is wanted.

    Opened before the secret is made, so that none is made that could not be kept; removed when the block fails.

    Raises:
        typer.Exit: the file exists already, or cannot be made.
    """
    if path is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        fail(f"--secret-file {path}: exists already and is left alone; name a new file")
    except OSError as error:
        fail(
            f"--secret-file {path}: cannot be made: {error.strerror}; name a new file in a directory that you may write to"
        )
    try:
        yield descriptor
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def hand_over(secret: str, file: int | None, whose: str) -> tuple[str, ...]:
    """What to print of a secret that was just made: itself, once, or where it was written to.

    Raises:
        typer.Exit: it could not be written.
    """
    if file is None:
        return (f"Secret: {secret}", "This is the only time that it is shown: keep it now.", "")
    try:
        os.write(file, f"{secret}\n".encode())
        os.fsync(file)
    except OSError as error:
        fail(f"--secret-file: the secret of {whose} could not be written and is lost: {error.strerror}; revoke {whose}")
    return ("The secret is in the file that --secret-file names, and nowhere else.", "")


def _credential(text: str, source: str) -> Secret:
    found = find_secret(text, SecretKind.OPERATOR) or find_secret(text, SecretKind.TOKEN)
    if found is None:
        fail(
            f"{source}: holds no credential; expected the 60 characters of one, dwop_… (an operator's) or dwst_… (a "
            "service token's), whole and without anything else. What it holds is not shown"
        )
    return found


def _required(text: str, source: str) -> str:
    if not text:
        fail(f"{source}: holds no secret. Give it with --secret-file FILE, in {SECRET_VARIABLE}, or on standard input")
    return text


def _read_standard_input() -> str:
    if sys.stdin is None or sys.stdin.closed:
        return ""
    if sys.stdin.isatty():
        try:
            return getpass.getpass("Secret (not shown): ", stream=sys.stderr).strip()
        except EOFError:
            return ""
    try:
        return _text(sys.stdin.buffer.read(_MOST_BYTES + 1), "standard input")
    except OSError as error:
        fail(f"standard input: cannot be read: {error.strerror}; name a file with --secret-file")


def _read_private(path: Path, option: str) -> str:
    """The text of a file that nobody but its owner may use. What is no plain file (a pipe) has no mode to look at."""
    where = f"{option} {path}"
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of the open file, not of the name: what is checked is what is read
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                fail(f"{where}: has mode {mode:04o}, so that others may use it; take that away with chmod 600")
            return _text(file.read(_MOST_BYTES + 1), where)
    except OSError as error:
        fail(f"{where}: cannot be read: {error.strerror}; name a file that you may read")


def _text(found: bytes, where: str) -> str:
    if len(found) > _MOST_BYTES:
        fail(f"{where}: holds more than {_MOST_BYTES} bytes; a secret has 60 characters")
    text = found.decode(errors="replace").strip()
    if "\N{REPLACEMENT CHARACTER}" in text:
        fail(f"{where}: holds no text; a secret has 60 characters of A-Z, a-z, 0-9 and _")
    return text


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # and reading it says what is wrong
    return True
