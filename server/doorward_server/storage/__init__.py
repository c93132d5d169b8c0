"""The only SQL and the only asyncpg (design section 6). `changes.commit` is the one door for what a decision reads."""
