"""The use cases: what Doorward does, without gRPC and without SQL."""
