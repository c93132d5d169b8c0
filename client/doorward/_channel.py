"""Where a client's calls go: one server or several, encrypted or not; everything that both dialects give a gRPC channel.

The credential travels with every call, so that a target beyond this machine needs TLS, unless `insecure` says that
something else keeps the connection private. Design sections 8 and 9.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypedDict

import grpc

from doorward._service_config import service_config

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

__all__ = ["Connecting", "Pem", "Route", "route_of"]

# A file's path, or PEM itself.
Pem: TypeAlias = "str | os.PathLike[str] | bytes"

# Room for a page of tokens with many grants each; 4 MiB is what a server takes, not what a reader must.
LONGEST_ANSWER: Final = 64 * 1024 * 1024
KEEPALIVE_S: Final = 30.0
# A Doorward server closes connections that ping more often than this.
SHORTEST_KEEPALIVE_S: Final = 10.0
KEEPALIVE_TIMEOUT_MS: Final = 10_000
# gRPC would wait up to two minutes before it tries a server again that was down.
CONNECTING: Final = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long one attempt to connect may take
)
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
# Of gRPC, where one target may lead to many servers.
_RESOLVED: Final = ("dns:", "xds:", "google-c2p:", "vsock:")
_EXAMPLE: Final = "HOST:PORT, [IPV6]:PORT, unix:PATH or a target in gRPC's notation, as dns:///doorward.internal:50051"


@dataclass(frozen=True, slots=True)
class Tls:
    """How the connection is encrypted. `ca` None: the roots that gRPC brings. `key` and `cert`: this client's own."""

    ca: Pem | None = None
    cert: Pem | None = None
    key: Pem | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """The same for a channel; files are read now.

        Raises:
            ValueError: one of `cert` and `key` without the other.
            OSError: a file cannot be read.
        """
        if (self.cert is None) is not (self.key is None):
            raise ValueError("tls_cert and tls_key go together: the client's certificate and its private key")
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.cert))


@dataclass(frozen=True, slots=True)
class Route:
    """What a channel is made of. `credentials` None: not encrypted."""

    target: str
    options: tuple[tuple[str, int | str], ...]
    credentials: grpc.ChannelCredentials | None


class Connecting(TypedDict, total=False):
    """How a client reaches its servers; each may be left out.

    `tls`: encrypt, also without any of the following. `tls_ca`: trust this authority, else the roots that gRPC brings.
    `tls_cert`, `tls_key`: be this client, where the server knows it by its certificate. Each is a path, or bytes of PEM,
    and is read when the client is made. `tls_server_name`: the name in the servers' certificates, where the target is
    none of them.
    `insecure`: allow another machine without TLS; the credential then crosses the network in the clear.
    `balanced`: whether each call takes one of several servers that is SERVING in gRPC's health protocol. Unless told, that
    is so for a list and for a name that may lead to several; one server is asked whatever it says of its health.
    `keepalive`: seconds (30) after which a silent connection is probed; at least 10; None: never.
    `options`: gRPC channel arguments, which prevail over the client's own.
    """

    tls: bool
    tls_ca: Pem
    tls_cert: Pem
    tls_key: Pem
    tls_server_name: str
    insecure: bool
    balanced: bool
    keepalive: float | None
    options: Iterable[tuple[str, int | str]]


def route_of(target: str | Sequence[str], service: str, how: Connecting) -> Route:
    """Where the calls of a client go.

    Raises:
        ValueError: an argument that cannot be right, several servers that gRPC cannot be given at once, or a connection
            to another machine that would be open.
        OSError: a file of `tls_…` cannot be read.
    """
    named = {
        key: how.get(key) for key in ("tls_ca", "tls_cert", "tls_key", "tls_server_name") if how.get(key) is not None
    }
    if named and how.get("tls") is False:
        raise ValueError(f"tls=False, and yet {', '.join(named)} is given")
    tls = None
    if named or how.get("tls"):
        tls = Tls(how.get("tls_ca"), how.get("tls_cert"), how.get("tls_key"), how.get("tls_server_name"))
    return _route_to(
        target,
        service,
        tls=tls,
        insecure=how.get("insecure", False),
        balanced=how.get("balanced"),
        keepalive_s=how.get("keepalive", KEEPALIVE_S),
        options=how.get("options", ()),
    )


def _route_to(
    target: str | Sequence[str],
    service: str,
    *,
    tls: Tls | None,
    insecure: bool,
    balanced: bool | None,
    keepalive_s: float | None,
    options: Iterable[tuple[str, int | str]],
) -> Route:
    targets = [target] if isinstance(target, str) else target
    addresses = [_Address.of(text) for text in dict.fromkeys(one for text in targets for one in _listed(text))]
    if not addresses:
        raise ValueError("target: no server is named")
    if tls is None and not insecure:
        _require_local(addresses)
    is_balanced = len(addresses) > 1 or not addresses[0].is_one_server if balanced is None else balanced
    own: list[tuple[str, int | str]] = [
        ("grpc.service_config", service_config(service, is_balanced=is_balanced)),
        ("grpc.service_config_disable_resolution", 1),  # a name server does not say what is retried
        ("grpc.enable_http_proxy", 0),  # it would see the credential
        ("grpc.max_receive_message_length", LONGEST_ANSWER),
        *CONNECTING,
        *_keepalive(keepalive_s),
    ]
    server_name = tls.server_name if tls is not None else None
    if len(addresses) > 1:
        if tls is not None and server_name is None:
            raise ValueError("tls_server_name must say which name the certificates of several servers have in common")
        # Else the list itself would be the authority.
        server_name = server_name or addresses[0].text
    if server_name is not None:
        own.append(("grpc.default_authority", server_name))
    return Route(_joined(addresses), (*own, *options), None if tls is None else tls.credentials())


@dataclass(frozen=True, slots=True)
class _Address:
    """One target. `family`: what several of them must have in common, unix, ipv4 or ipv6; empty for a name."""

    text: str
    family: str
    is_local: bool
    is_one_server: bool = True

    @classmethod
    def of(cls, text: str) -> _Address:
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls(text, "unix", is_local=True)
        if text.startswith("unix-abstract:"):
            return cls(text, "", is_local=True)
        if text.startswith(_RESOLVED):
            return cls(text, "", is_local=False, is_one_server=False)
        host, _, port = text.rpartition(":")
        if not host or not _PORT.fullmatch(port) or int(port) > 65535 or "/" in host:
            raise ValueError(f"target: {text!r} is no address; write {_EXAMPLE}")
        if host == "localhost":
            return cls(text, "ipv4", is_local=True)
        try:
            ip = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
        except ValueError:
            return cls(text, "", is_local=False, is_one_server=False)
        return cls(text, f"ipv{ip.version}", is_local=ip.is_loopback)


def _listed(text: str) -> Sequence[str]:
    """The addresses of a target in gRPC's notation for several."""
    scheme, _, rest = text.partition(":")
    return rest.lstrip("/").split(",") if scheme in {"ipv4", "ipv6"} else (text,)


def _joined(addresses: Sequence[_Address]) -> str:
    if len(addresses) == 1:
        return addresses[0].text
    families = {one.family for one in addresses}
    if len(families) != 1 or "" in families:
        raise ValueError(
            "target: several servers are named by IP addresses of one version, or all by unix:PATH. Servers with names "
            "need one name that leads to all of them, as dns:///doorward.internal:50051"
        )
    # There gRPC resolves nothing, not even this machine's own name.
    listed = (one.text.removeprefix("unix:").replace("localhost:", "127.0.0.1:") for one in addresses)
    return f"{families.pop()}:{','.join(listed)}"


def _require_local(addresses: Sequence[_Address]) -> None:
    for one in addresses:
        if not one.is_local:
            raise ValueError(
                f"target: {one.text!r} may be another machine, and the credential would cross the network in the clear; give "
                "tls_ca=… or tls=True, or insecure=True if something else encrypts the connection"
            )


def _keepalive(seconds: float | None) -> tuple[tuple[str, int], ...]:
    if seconds is None:
        return ()
    if not SHORTEST_KEEPALIVE_S <= seconds <= 86_400:
        raise ValueError(f"keepalive: between {SHORTEST_KEEPALIVE_S:.0f} seconds and a day, or None")
    return (
        ("grpc.keepalive_time_ms", round(seconds * 1000)),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )


def _pem(given: Pem | None) -> bytes | None:
    return given if given is None or isinstance(given, bytes) else Path(given).read_bytes()
