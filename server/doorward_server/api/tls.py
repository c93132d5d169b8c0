"""gRPC's side of a TLS listener: hands it the pair in force, and each newer one as connections are made (design section 9).

gRPC asks at every handshake, on threads of its own, so nothing needs to watch the files and no connection is broken: those
that stand keep what they were made with until their age ends them. Called by `app.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import grpc
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward_server.credentials.certificates import Certificates, Pair

__all__ = ["server_credentials"]

log = structlog.get_logger()


def server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Credentials of a listener. With a client CA, nobody connects without a certificate of it."""

    def newer() -> grpc.ServerCertificateConfiguration | None:
        try:
            pair = certificates.changed()
        except Exception:
            # gRPC would refuse the connection, and the next one, without a word.
            log.exception("tls_files_kept")
            return None
        return None if pair is None else _configuration(pair)

    first = certificates.first
    # None is for "as before", whatever the stubs say.
    fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", newer)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(first), fetch, require_client_authentication=first.client_ca is not None
    )


def _configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], root_certificates=pair.client_ca)
