"""Every option of `doorward serve`, once: its default, unit and meaning (design section 9).

`serve --help`, the `DOORWARD_…` environment variables and `docs/settings.md` are all made from this one model. Imports
nothing of ours.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Listen", "Settings"]


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
        if not separator or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
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
        default=1_000, ge=10, le=100_000, description="RPCs served at once; more are refused."
    )
    max_live_tokens: int = Field(default=10_000, ge=1, le=1_000_000, description="Tokens of one account not revoked.")
    max_grants: int = Field(default=100, ge=1, le=1_000, description="Grants of one token.")
    max_projects_in_grant: int = Field(default=1_000, ge=1, le=10_000, description="Projects that one grant may name.")
    max_labels: int = Field(default=32, ge=0, le=64, description="Labels of one token.")
    max_batch: int = Field(default=1_000, ge=1, le=10_000, description="Items of one batch.")
    max_page: int = Field(default=1_000, ge=1, le=1_000, description="Rows of one page of a list.")
    drain: float = Field(default=10.0, ge=0.0, le=600.0, description="Seconds for running calls to end after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
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
        if not self.insecure and not Listen(self.listen).is_local:
            raise ValueError(
                f"listen: {self.listen} is reachable from other machines and would carry secrets in the clear; "
                "listen on loopback, or say --insecure"
            )
        if self.database_url is not None and self.pepper_file is None:
            raise ValueError(
                "pepper_file: an external database needs the same pepper keys at every server; name the file with "
                "--pepper-file (make one with: doorward pepper add --pepper-file FILE)"
            )
        return self

    @property
    def hold_ms(self) -> int:
        """The hold in milliseconds, as it stands in the replica's row."""
        return round(self.hold * 1000)

    @property
    def pepper_path(self) -> Path:
        """The pepper file that is in force."""
        return self.pepper_file or self.data_dir / "pepper.keys"
