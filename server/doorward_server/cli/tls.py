"""How a command's connection is encrypted: its options, and what they come to for a client. Called by `connection.py`.

The variables of a client's own certificate are not called as the server's are (`DOORWARD_TLS_CERT`): where both run, each
must have its own. Design sections 5 and 9.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import typer

from doorward_server.cli.failure import fail
from doorward_server.cli.signatures import option

__all__ = ["TLS_OPTIONS", "stands_for_operator", "tls_of"]

_FILES: Final = ("tls_ca", "tls_cert", "tls_key")

TLS_OPTIONS: Final = (
    option("tls", bool, False, "--tls", help="Use TLS, and trust the authorities that everybody trusts."),
    option(
        "tls_ca",
        Path | None,
        None,
        metavar="FILE",
        envvar="DOORWARD_TLS_CA",
        help="Use TLS, and trust the authorities in this file (PEM).",
    ),
    option(
        "tls_cert",
        Path | None,
        None,
        metavar="FILE",
        envvar="DOORWARD_CLIENT_TLS_CERT",
        help="Your own certificate (PEM). One that names an operator needs no credential beside it.",
    ),
    option(
        "tls_key",
        Path | None,
        None,
        metavar="FILE",
        envvar="DOORWARD_CLIENT_TLS_KEY",
        help="The private key of your certificate (PEM).",
    ),
    option(
        "tls_server_name",
        str | None,
        None,
        metavar="NAME",
        help="The name in the server's certificate, where --address is another: of a tunnel, say.",
    ),
)


def tls_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a client is told; empty: no TLS.

    Raises:
        typer.BadParameter, typer.Exit: a file cannot be read, or lacks its counterpart.
    """
    for has, lacks in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if options[has] is not None and options[lacks] is None:
            raise typer.BadParameter(
                f"is needed beside --{has.replace('_', '-')}", param_hint=f"--{lacks.replace('_', '-')}"
            )
    told: dict[str, Any] = {name: _content(name, options[name]) for name in _FILES if options[name] is not None}
    if options["tls_server_name"]:
        told["tls_server_name"] = options["tls_server_name"]
    if options["tls"] or told:
        told["tls"] = True
    return told


def stands_for_operator(told: Mapping[str, Any]) -> bool:
    """Whether the server will know the caller by the certificate alone, if there is such an operator."""
    if "tls_cert" not in told:
        return False
    # Most commands have no certificate, and need not load what reads one.
    from doorward_server.credentials.certificates import operator_in  # noqa: PLC0415

    return operator_in(told["tls_cert"]) is not None


def _content(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fail(
            f"--{name.replace('_', '-')} {path}: cannot be read: {error.strerror}; name a file in PEM that you may read"
        )
