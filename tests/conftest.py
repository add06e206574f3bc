"""Fixtures of every test: the real servers, each started once per session, on free ports, in temporary folders."""

pytest_plugins = [
    "tests.fixtures_kafka",
    "tests.fixtures_storage",
    "tests.fixtures_run",
    "tests.fixtures_cli",
    "tests.fixtures_spark",
    "tests.fixtures_mart",
    "tests.fixtures_browser",
    "tests.fixtures_superset",
]
