"""The simulated fleet: endless, in order of time, repeatable, lifelike, and honest about its faults."""

import tracemalloc
from collections import defaultdict
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.faults import KINDS, SENSORS
from data.simulate import START, simulate
from flead.errors import BadConfiguration
from flead.messages import Reading, ReadingLimits, parse_reading

DAY = 2880
"""Slots of 30 s in a day."""


def take(count: int, devices: int = 3, **arguments: Any) -> list[Reading]:
    return list(islice(simulate(devices, **{"seed": 1, **arguments}), count))


def labelled(records: list[Reading], kind: str) -> list[Reading]:
    return [record for record in records if record.metadata.get("fault") == kind]


@pytest.fixture(scope="module")
def day() -> np.ndarray[Any, np.dtype[np.float64]]:
    """One device's day, (slots, sensors)."""
    records = take(DAY, devices=1, faults=False, radio_loss=0.0, missing=0.0)
    return np.array([list(record.sensors.values()) for record in records], dtype=float)


@pytest.fixture(scope="module")
def broken() -> list[Reading]:
    return take(60_000, devices=50, faults_per_day=20.0, radio_loss=0.0)


@pytest.fixture(scope="module")
def healthy() -> list[Reading]:
    return take(60_000, devices=50, faults=False, radio_loss=0.0)


class TestStream:
    @settings(deadline=None, max_examples=40)
    @given(devices=st.integers(1, 20), seed=st.integers(0, 2**32), loss=st.floats(0, 0.9))
    def test_comes_in_order_of_time_and_rises_for_each_device(self, devices: int, seed: int, loss: float) -> None:
        records = take(200, devices, seed=seed, radio_loss=loss)
        times = [record.timestamp for record in records]
        assert times == sorted(times)
        by_device = defaultdict(list)
        for record in records:
            by_device[record.device_id].append(record.timestamp)
        assert all(a < b for series in by_device.values() for a, b in pairwise(series))

    def test_the_same_seed_gives_the_same_stream(self) -> None:
        assert take(500) == take(500)
        assert take(500) != take(500, seed=2)

    def test_each_device_reports_once_in_a_slot_at_its_own_moment(self) -> None:
        records = take(300, devices=100, radio_loss=0.0)
        for slot in range(3):
            part = records[slot * 100 : slot * 100 + 100]
            begin = START + timedelta(seconds=30 * slot)
            assert {record.device_id for record in part} == {f"sim-{i}" for i in range(1, 101)}
            assert all(begin <= record.timestamp < begin + timedelta(seconds=30) for record in part)
            assert len({record.timestamp for record in part}) == 100

    def test_every_record_is_one_that_the_topic_takes(self) -> None:
        now = datetime(2025, 1, 1, tzinfo=UTC)
        for record in take(2000, faults_per_day=200.0):
            assert parse_reading(record.to_json(), now=now, limits=ReadingLimits()) == record
            assert tuple(record.sensors) == SENSORS

    def test_loses_the_asked_share_of_readings_and_values(self) -> None:
        records = take(20_000, devices=100, radio_loss=0.25, missing=0.1, faults=False)
        slots = (records[-1].timestamp - START) // timedelta(seconds=30)
        assert len(records) / (slots * 100) == pytest.approx(0.75, abs=0.02)
        values = [value for record in records for value in record.sensors.values()]
        assert values.count(None) / len(values) == pytest.approx(0.1, abs=0.01)

    def test_starts_at_any_time_in_any_zone_and_speaks_utc(self) -> None:
        start = datetime(2024, 6, 1, 2, tzinfo=timezone(timedelta(hours=2)))
        first = take(1, start=start)[0].timestamp
        assert first.tzinfo is UTC
        assert start <= first < start + timedelta(seconds=30)

    def test_a_hundred_thousand_devices_are_a_fleet_like_any_other(self) -> None:
        names = {record.device_id for record in take(100_000, devices=100_000, radio_loss=0.0)}
        assert names == {f"sim-{i}" for i in range(1, 100_001)}

    def test_memory_is_for_one_slot_however_long_it_runs(self) -> None:
        def peak(slots: int) -> int:
            stream = simulate(2000, seed=1, radio_loss=0.0)
            tracemalloc.start()
            for _ in islice(stream, 2000 * slots):
                pass
            top = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return top

        few, many = peak(2), peak(12)
        assert many < few * 1.2
        assert many < 2000 * 1000

    @pytest.mark.parametrize(
        "wrong",
        [
            {"devices": 0},
            {"interval_s": 0.0},
            {"radio_loss": 1.0},
            {"missing": -0.1},
            {"faults_per_day": float("nan")},
            {"start": datetime(2024, 1, 1)},  # noqa: DTZ001 - naive on purpose
        ],
    )
    def test_an_argument_that_cannot_work_is_named_at_once(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(BadConfiguration, match=next(iter(wrong))):
            simulate(**{"devices": 1, "seed": 1, **wrong})


class TestPhysics:
    def test_a_day_has_a_dark_night_and_a_bright_warm_noon(self, day: np.ndarray[Any, Any]) -> None:
        night, noon = day[: DAY // 8].mean(axis=0), day[DAY // 2 : DAY * 5 // 8].mean(axis=0)
        temperature, _, light, _ = range(4)
        assert night[light] < 1 < 20 < noon[light]
        assert noon[temperature] > night[temperature] + 1

    def test_sensors_move_together(self, day: np.ndarray[Any, Any]) -> None:
        correlation = np.corrcoef(day.T)
        assert correlation[0, 1] < -0.9  # warm air is relatively dry
        assert correlation[0, 2] > 0.5  # light warms
        assert correlation[0, 3] > 0.5  # a warm battery gives more

    def test_batteries_run_down(self) -> None:
        records = take(20 * 24, devices=1, interval_s=3600.0, faults=False, radio_loss=0.0, missing=0.0)
        voltage = [record.sensors["voltage"] or 0.0 for record in records]
        assert np.mean(voltage[-24:]) < np.mean(voltage[:24]) - 0.01

    def test_devices_differ_in_level_and_phase(self) -> None:
        records = take(50, devices=50, faults=False, radio_loss=0.0, missing=0.0)
        assert np.std([record.sensors["temperature"] or 0.0 for record in records]) > 0.5


class TestFaults:
    def test_happen_in_every_kind_and_carry_a_label(self, broken: list[Reading]) -> None:
        assert all(labelled(broken, kind.name) for kind in KINDS)
        assert {frozenset(record.metadata) for record in broken} == {frozenset(), frozenset({"fault", "fault_sensor"})}
        assert {record.metadata["fault_sensor"] for record in labelled(broken, "dead_battery")} == {"voltage"}

    def test_change_what_is_labelled_and_nothing_else(self, broken: list[Reading], healthy: list[Reading]) -> None:
        for record, before in zip(broken, healthy, strict=True):
            assert (record.device_id, record.timestamp) == (before.device_id, before.timestamp)
            assert record.metadata or record == before

    def test_a_label_is_never_on_a_missing_value(self, broken: list[Reading]) -> None:
        assert all(record.sensors[record.metadata["fault_sensor"]] is not None for record in broken if record.metadata)

    def test_a_spike_stands_out(self, broken: list[Reading], healthy: list[Reading]) -> None:
        jumps = [
            abs((record.sensors["temperature"] or 0.0) - (before.sensors["temperature"] or 0.0))
            for record, before in zip(broken, healthy, strict=True)
            if record.metadata == {"fault": "spike", "fault_sensor": "temperature"} and before.sensors["temperature"]
        ]
        assert min(jumps) > 5  # °C

    def test_a_stuck_sensor_says_the_same_for_as_long_as_it_is_stuck(self, broken: list[Reading]) -> None:
        runs: dict[str, list[float | None]] = defaultdict(list)
        longest = 0
        for record in broken:
            series = runs[record.device_id]
            if record.metadata == {"fault": "stuck_at", "fault_sensor": "temperature"}:
                series.append(record.sensors["temperature"])
                longest = max(longest, len(series))
                assert len(set(series)) == 1
            else:
                series.clear()
        assert longest >= 20

    def test_a_dying_battery_takes_the_thermometer_with_it(self, broken: list[Reading]) -> None:
        dying = labelled(broken, "dead_battery")
        assert min(record.sensors["voltage"] or 9.0 for record in dying) < 2.0
        assert max(record.sensors["temperature"] or 0.0 for record in dying) > 50
