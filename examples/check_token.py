import os
from pathlib import Path

from doorward.threads import AuthorizerClient, DoorwardError

credential = Path(os.environ.get("DOORWARD_TOKEN_FILE", "doorward-data/caller.token"))
with AuthorizerClient(os.environ.get("DOORWARD_ADDRESS", "127.0.0.1:50051"), credential=credential) as authorizer:
    try:
        decision = authorizer.check(os.environ["DOORWARD_SECRET"], "jobs:write", project_id="warehouse")
        print("allowed" if decision else f"denied: {decision.reason}")
    except DoorwardError as error:
        print(f"denied, for nobody could decide: {error}")
