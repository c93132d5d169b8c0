"""The only gRPC: from bytes to use cases and back."""
