"""The command line (design section 9): a plain gRPC client, but for serve, db, pepper and operator create --direct."""

import os

# The C core of gRPC writes lines of its own to standard error, among what programs read there, and one at every stop of a
# server (`api/connections.py`). It looks at this when it is imported, and no part of it can be told later.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
