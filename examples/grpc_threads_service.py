"""A grpc service with threads whose every method is guarded: `python -m examples.grpc_threads_service`.

Asks Doorward at DOORWARD_ADDRESS with the credential in DOORWARD_TOKEN_FILE, and listens on LISTEN. The contract is jobs.proto.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from doorward.integrations.grpc_threads import Guard, Needs, Rules, from_metadata, identity
from doorward.threads import AuthorizerClient, LocalAuthorizer
from examples import jobs_pb2, jobs_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

# PurgeJobs has no rule, so nobody may call it.
RULES: Rules = {
    "/example.v1.Jobs/StartJob": Needs("jobs:write", project_id="project_id"),
    "/example.v1.Jobs/ReadLog": Needs("jobs:read", project_id="job.project_id"),
    "/example.v1.Jobs/UploadLog": Needs("jobs:write", project_id="project_id"),
    "/example.v1.Jobs/FollowJobs": Needs("jobs:read", project_id=from_metadata("project-id")),
    "/example.v1.Jobs/ReadUsage": Needs("billing:read", account_id="account_id"),
}


class Jobs(jobs_pb2_grpc.JobsServicer):
    """Does nothing much, but says for whom."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def StartJob(self, request: jobs_pb2.StartJobRequest, _context: object) -> jobs_pb2.StartJobResponse:
        job = jobs_pb2.Job(project_id=request.project_id, job_id="1")
        return jobs_pb2.StartJobResponse(job=job, started_by=identity().token_id)

    def ReadLog(self, request: jobs_pb2.ReadLogRequest, _context: object) -> Iterator[jobs_pb2.LogLine]:
        for text in ("started", f"ended, for {identity().account_id}"):
            yield jobs_pb2.LogLine(text=f"{request.job.project_id}: {text}")

    def UploadLog(self, requests: Iterator[jobs_pb2.UploadLogRequest], _context: object) -> jobs_pb2.UploadLogResponse:
        return jobs_pb2.UploadLogResponse(lines=len(list(requests)))

    def FollowJobs(
        self, requests: Iterator[jobs_pb2.FollowJobsRequest], context: grpc.ServicerContext
    ) -> Iterator[jobs_pb2.FollowJobsResponse]:
        for request in requests:
            # The stream may outlive the token that it began with.
            if not self._guard.still_allowed():
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "no longer allowed")
            yield jobs_pb2.FollowJobsResponse(job=jobs_pb2.Job(job_id=request.job_id))

    def ReadUsage(self, _request: jobs_pb2.ReadUsageRequest, _context: object) -> jobs_pb2.ReadUsageResponse:
        return jobs_pb2.ReadUsageResponse(jobs=1)

    def PurgeJobs(self, _request: jobs_pb2.PurgeJobsRequest, _context: object) -> jobs_pb2.PurgeJobsResponse:
        raise AssertionError("nobody may call this")


def main() -> None:
    address = os.environ.get("DOORWARD_ADDRESS", "127.0.0.1:50051")
    credential = Path(os.environ.get("DOORWARD_TOKEN_FILE", "doorward-data/caller.token"))
    # Both fit: with DECIDE=here this process decides by itself.
    kind = LocalAuthorizer if os.environ.get("DECIDE") == "here" else AuthorizerClient
    with kind(address, credential=credential) as authorizer:
        guard = Guard(authorizer, RULES)
        server = grpc.server(ThreadPoolExecutor(32), interceptors=[guard])
        jobs_pb2_grpc.add_JobsServicer_to_server(Jobs(guard), server)
        port = server.add_insecure_port(os.environ.get("LISTEN", "127.0.0.1:50061"))
        server.start()
        print(f"listens on port {port}", flush=True)
        server.wait_for_termination()


if __name__ == "__main__":
    main()
