"""The client of Doorward: what callers install."""
