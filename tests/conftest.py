"""Lists the plug-ins whose fixtures the tests use."""

pytest_plugins = [
    "tests.support.postgres",
    "tests.support.database",
    "tests.support.server",
    "tests.support.cluster",
    "tests.support.pair",
    "tests.support.dialects",
    "tests.support.held",
    "tests.support.guarded",
    "tests.support.programs",
    "tests.support.places",
    "tests.support.mints",
    "tests.support.logs",
]
