"""What this process holds in memory, and how it stays true (design section 7)."""
