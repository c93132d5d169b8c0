"""The pure core: what is decided, without I/O, clocks or protobuf. Server and client share it."""
