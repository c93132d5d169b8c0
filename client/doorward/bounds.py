"""What bounds the memory of a `LocalAuthorizer`: `WatchBounds(tokens=…, accounts=…, projects=…, unknown=…)`."""

from doorward.core.watch_tables import WatchBounds

__all__ = ["WatchBounds"]
