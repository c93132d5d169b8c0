"""Our own PostgreSQL, for a server that was given no database URL: found, initialised, started, stopped.

`postgres.EmbeddedPostgres` is the way in. Knows no table and no setting; the app hands it a directory and takes a URL.
Design section 6, "Embedded default".
"""
