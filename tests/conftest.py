"""Lists the plug-ins whose fixtures the tests use."""

pytest_plugins = [
    "tests.support.postgres",
    "tests.support.database",
    "tests.support.server",
    "tests.support.cluster",
    "tests.support.pair",
]
