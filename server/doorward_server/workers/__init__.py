"""N replicas on one port, each in a process of its own, under one parent (design section 9)."""
