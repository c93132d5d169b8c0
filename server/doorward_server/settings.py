"""Every option of `doorward serve`, once: its default, unit and meaning (design section 9).

`serve --help`, the `DOORWARD_…` environment variables and `docs/settings.md` are all made from this one model. Imports
nothing of ours.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Listen", "Settings"]

LAST_PORT: Final = 65535


class Listen:
    """Where a server listens: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`."""

    __slots__ = ("host", "port", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        if text.startswith("unix:"):
            if len(text) == len("unix:"):
                raise ValueError("a Unix socket needs a path: unix:PATH")
            self.host, self.port = "", 0
            return
        host, separator, port = text.rpartition(":")
        if not separator or not host or not port.isascii() or not port.isdecimal() or int(port) > LAST_PORT:
            raise ValueError(
                "must be HOST:PORT (port 0 to 65535), [IPV6]:PORT or unix:PATH, for example 127.0.0.1:50051"
            )
        self.host, self.port = host.removeprefix("[").removesuffix("]"), int(port)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if not self.host:
            return True
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Settings(BaseSettings):
    """What an operator may set. Order here is the order in `serve --help`."""

    model_config = SettingsConfigDict(env_prefix="DOORWARD_", extra="ignore", validate_default=True)

    listen: str = Field(
        default="127.0.0.1:50051", description="Where gRPC is served: HOST:PORT, [IPV6]:PORT or unix:PATH."
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Server processes that share the port, each a replica of its own: one for each core.",
    )
    http: str | None = Field(
        default=None,
        description="Where /metrics, /livez and /readyz are served: HOST:PORT. Worker 2 has the next port, and so on.",
    )
    insecure: bool = Field(
        default=False, description="Serve beyond loopback without TLS. Secrets then cross the network in the clear."
    )
    tls_cert: Path | None = Field(
        default=None,
        description="Certificate of the gRPC listener and its intermediates, PEM. Replace it while the server runs.",
    )
    tls_key: Path | None = Field(default=None, description="Private key of the certificate (ECDSA or RSA), PEM.")
    tls_client_ca: Path | None = Field(
        default=None,
        description="Authorities whose certificates clients must have, PEM. One with the URI doorward-operator:ID is "
        "that operator's, so use an authority of your own.",
    )
    data_dir: Path = Field(
        default=Path("doorward-data"),
        description="Directory of the embedded PostgreSQL, the pepper keys and the first credentials.",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="PostgreSQL (15 or newer) to use instead of the embedded one: postgresql://USER:PASSWORD@HOST:PORT/NAME.",
    )
    database_pool: int = Field(
        default=10, ge=2, le=200, description="Connections to PostgreSQL for reads and mutations."
    )
    database_pooler: Literal["session", "transaction"] = Field(
        default="session",
        description="How a pooler between Doorward and PostgreSQL works; transaction: no LISTEN, no prepared statements.",
    )
    accept_failover_loss: bool = Field(
        default=False,
        description="Run on several database hosts without synchronous replication: a failover may undo a revocation.",
    )
    pepper_file: Path | None = Field(
        default=None,
        description="File of the pepper keys. Default with the embedded PostgreSQL: DATA_DIR/pepper.keys; else required.",
    )
    hold: float = Field(
        default=5.0,
        ge=0.5,
        le=300.0,
        description="Seconds that a mutation waits, at the most and once, for a replica that died or was cut off.",
    )
    token_cache: int = Field(default=100_000, ge=100, le=10_000_000, description="Tokens kept in memory.")
    reflection: bool = Field(default=True, description="Offer gRPC server reflection.")
    max_concurrent_rpcs: int = Field(
        default=1_000,
        ge=10,
        le=100_000,
        description="RPCs that may wait for something at once, streams among them; more are refused.",
    )
    max_watchers: int = Field(
        default=500,
        ge=1,
        le=100_000,
        description="Watch streams open at once, at most half of max_concurrent_rpcs; more are refused.",
    )
    max_live_tokens: int = Field(default=10_000, ge=1, le=1_000_000, description="Tokens of one account not revoked.")
    max_grants: int = Field(default=100, ge=1, le=1_000, description="Grants of one token.")
    max_projects_in_grant: int = Field(default=1_000, ge=1, le=10_000, description="Projects that one grant may name.")
    max_labels: int = Field(default=32, ge=0, le=64, description="Labels of one token.")
    max_batch: int = Field(default=1_000, ge=1, le=10_000, description="Items of one batch.")
    max_page: int = Field(default=1_000, ge=1, le=1_000, description="Rows of one page of a list.")
    usage_interval: float = Field(
        default=30.0,
        ge=1.0,
        le=3600.0,
        description="Seconds between two writes of when tokens were last used, which may lag by twice as much.",
    )
    retention_audit_months: int = Field(
        default=0,
        ge=0,
        le=1_200,
        description="Whole months, besides the running one, that audit events are kept. 0: for ever.",
    )
    retention_revoked_days: int = Field(
        default=400,
        ge=0,
        le=36_500,
        description="Days that a token's record is kept after it was revoked; then its id is unknown. 0: for ever.",
    )
    retention_refusals_days: int = Field(
        default=90,
        ge=0,
        le=36_500,
        description="Days that refused changes and failed credentials stay on record. 0: for ever.",
    )
    retention_changes: float = Field(
        default=3600.0,
        ge=0.0,
        le=31_536_000.0,
        description="Seconds that a change stays in the log after it was made, and longer until every replica has applied it.",
    )
    retention_interval: float = Field(
        default=600.0,
        ge=1.0,
        le=86_400.0,
        description="Seconds between two looks for what is kept no longer; one replica at a time removes it.",
    )
    drain: float = Field(default=10.0, ge=0.0, le=600.0, description="Seconds for running calls to end after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )
    traces: Literal["off", "otlp"] = Field(
        default="off",
        description="Send OpenTelemetry traces over OTLP, to where OTEL_EXPORTER_OTLP_ENDPOINT says; needs the extra otel.",
    )
    log_format: Literal["text", "json"] = Field(default="text", description="Log lines for people or for programs.")

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, value: str) -> str:
        Listen(value)
        return value

    @field_validator("http")
    @classmethod
    def _http_is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not Listen(value).host:
            raise ValueError("must be HOST:PORT, for example 127.0.0.1:9464")
        return value

    @field_validator("database_url")
    @classmethod
    def _url_is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and urllib.parse.urlsplit(value.get_secret_value()).scheme not in {
            "postgresql",
            "postgres",
        }:
            raise ValueError("must begin with postgresql://")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Settings:
        if self.workers > 1 and not Listen(self.listen).host:
            raise ValueError(
                f"workers: several workers cannot share a Unix socket ({self.listen}); listen on HOST:PORT, or run one"
            )
        self._pages_have_ports_of_their_own()
        self._certificates_have_their_keys()
        if not self.insecure and self.tls_cert is None and not Listen(self.listen).is_local:
            raise ValueError(
                f"listen: {self.listen} is reachable from other machines and would carry secrets in the clear; "
                "give a certificate with --tls-cert and --tls-key, listen on loopback, or say --insecure"
            )
        if self.database_url is not None and self.pepper_file is None:
            raise ValueError(
                "pepper_file: an external database needs the same pepper keys at every server; name the file with "
                "--pepper-file (make one with: doorward pepper add --pepper-file FILE)"
            )
        return self

    def _certificates_have_their_keys(self) -> None:
        for has, lacks in (("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert")):
            if getattr(self, has) is not None and getattr(self, lacks) is None:
                raise ValueError(f"{lacks}: is needed beside --{has.replace('_', '-')}")

    def _pages_have_ports_of_their_own(self) -> None:
        if self.http is None or (first := Listen(self.http).port) == 0:
            return
        last = first + self.workers - 1
        if last > LAST_PORT:
            raise ValueError(
                f"http: worker {self.workers} would serve its page on port {last}, and there is none beyond {LAST_PORT}; "
                f"begin at {LAST_PORT + 1 - self.workers} or lower"
            )
        # Workers share ports, so that one of them would get calls as requests for its page, and nobody would be refused.
        if self.workers > 1 and first <= Listen(self.listen).port <= last:
            raise ValueError(
                f"http: the pages of {self.workers} workers take the ports {first} to {last}, and {self.listen} is where "
                "gRPC is served; choose ports that are apart"
            )

    @property
    def hold_ms(self) -> int:
        """The hold in milliseconds, as it stands in the replica's row."""
        return round(self.hold * 1000)

    @property
    def pepper_path(self) -> Path:
        """The pepper file that is in force."""
        return self.pepper_file or self.data_dir / "pepper.keys"
