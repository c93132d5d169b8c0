"""Traces of a real server, as a collector receives them: calls, transactions and barriers, and no secret in any byte."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.server import start_server, stubs_on
from tests.support.wire import an_account, check, on_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def collecting() -> Iterator[tuple[str, list[bytes]]]:
    """A collector: where it is, and what it was sent."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def test_a_collector_gets_calls_with_their_parts_and_no_secret(tmp_path: Path) -> None:
    with collecting() as (url, received):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        server = start_server(tmp_path / "data", tmp_path / "scratch", ["--traces", "otlp"], environment=environment)
        with grpc.insecure_channel(server.address) as channel:
            stubs = stubs_on(channel, server)
            account = an_account(stubs)
            secret = account.issue(on_all("job_admin")).secret
            check(stubs, secret, "jobs:read", project_id=account.project_ids[0])
        secrets = [secret, server.operator_credential, server.caller_credential]
        assert server.stop() == 0

    sent = [ExportTraceServiceRequest.FromString(body) for body in received]
    spans = [
        span
        for request in sent
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    by_id = {span.span_id: span for span in spans}
    parents = {(span.name, by_id[span.parent_span_id].name) for span in spans if span.parent_span_id}
    issue = "doorward.v1.TokenAdmin/IssueToken"
    assert {("transaction", issue), ("barrier", issue)} <= parents
    assert "doorward.v1.Authorizer/Check" in {span.name for span in spans}
    for known in secrets:
        assert all(known.encode() not in body and known[-38:].encode() not in body for body in received)
