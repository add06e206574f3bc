"""A small job around `flink.partial`, on a cluster inside its own process: prints what the shards send.

Run by tests/test_partial.py: `python -m tests.partial_job thread|process`. Update i comes from device i modulo
`DEVICES`, learned from 1 + device samples, and its only weight that is not 0 names the device: so what was summed up
can be read from the sum.
"""

from __future__ import annotations

import sys

import numpy as np
import orjson
from pyflink.common import Configuration, Row
from pyflink.datastream import StreamExecutionEnvironment

from flead import network
from flead.network import Architecture
from flink.functions import RECORD
from flink.partial import partial_sums

DEVICES, UPDATES, SHARDS, UNREADABLE = 6, 120, 2, 7
ARCHITECTURE = Architecture(DEVICES - 1, (), 1)


def update(number: int) -> Row:
    device = number % DEVICES
    said = {
        "device_id": f"d-{device}",
        "weights": network.to_message(np.eye(DEVICES)[device], ARCHITECTURE),
        "sample_count": 1 + device,
        "timestamp": f"2024-01-01T00:{number // 60:02}:{number % 60:02}+00:00",
        "metadata": {"cohort": "x", "sensors": ["x"], "samples_seen": 1 + number, "base_version": 3 + device % 2},
    }
    return Row(b"key", b"?" if number == UNREADABLE else orjson.dumps(said))


def main() -> None:
    from pyflink.table import StreamTableEnvironment  # only here: it warns, and tests take warnings for errors

    options = {
        "python.executable": sys.executable, "python.client.executable": sys.executable,
        "python.execution-mode": sys.argv[1], "python.fn-execution.bundle.time": "20", "parallelism.default": "1",
        "rest.port": "0",
    }  # fmt: skip
    configuration = Configuration()
    for key, value in options.items():
        configuration.set_string(key, value)
    environment = StreamExecutionEnvironment.get_execution_environment(configuration)
    tables = StreamTableEnvironment.create(environment)
    tables.execute_sql(f"""
        CREATE TEMPORARY TABLE numbers (i INT) WITH (
            'connector' = 'datagen', 'rows-per-second' = '60', 'number-of-rows' = '{UPDATES}',
            'fields.i.kind' = 'sequence', 'fields.i.start' = '0', 'fields.i.end' = '{UPDATES - 1}'
        )""")
    numbers = tables.to_data_stream(tables.sql_query("SELECT i FROM numbers"))
    updates = numbers.map(lambda row: update(row[0]), RECORD)
    with partial_sums(updates, SHARDS, 0.3).execute_and_collect() as sent:
        for key, value in sent:
            sys.stdout.write(f"{bytes(key).decode()} {bytes(value).decode()}\n")


if __name__ == "__main__":
    main()
