"""The command line (design section 9): a plain gRPC client, but for serve, db, pepper and operator create --direct."""
