import os
from pathlib import Path

import grpc

from doorward.v1 import authorizer_pb2, authorizer_pb2_grpc, types_pb2

credential = Path(os.environ.get("DOORWARD_TOKEN_FILE", "doorward-data/caller.token")).read_text().strip()
ask = authorizer_pb2.CheckRequest(secret=os.environ["DOORWARD_SECRET"], permission="jobs:write", project_id="warehouse")
with grpc.insecure_channel(os.environ.get("DOORWARD_ADDRESS", "127.0.0.1:50051")) as channel:
    check = authorizer_pb2_grpc.AuthorizerStub(channel).Check
    answer = check(ask, timeout=1.0, metadata=(("authorization", f"Bearer {credential}"),))
print("allowed" if answer.allowed else f"denied: {types_pb2.DenyReason.Name(answer.reason)}")
