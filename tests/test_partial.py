"""Partial sums stand for their devices: however a fleet is cut, the mean is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import PROJECT
from flead import network
from flead.errors import BadUpdate
from flead.federation import fedavg
from flead.messages import LocalUpdate, WeightsMessage
from flead.network import Architecture
from flead.partial import Part, PartialSum, partial_updates, sender_name, shard_of
from flead.updates import read_message
from orchestration.java import find_java_home
from tests import partial_job

NOW = datetime(2024, 1, 1, tzinfo=UTC)
TINY = Architecture(1, (), 1)

numbers = st.floats(-1e6, 1e6, allow_nan=False)
fleets = st.lists(st.tuples(numbers, numbers, st.integers(0, 10**6)), min_size=1, max_size=12).filter(
    lambda fleet: any(samples for _, _, samples in fleet)
)


def part(device: str = "d", value: float = 1.0, **said: Any) -> Part:
    theta = np.full(TINY.parameter_count, value)
    return replace(Part(device, "x", theta, TINY, samples=10, timestamp=NOW, sensors=("t",)), **said)


class TestASum:
    @given(fleets, st.data())
    def test_fedavg_of_partial_means_is_fedavg_of_all(
        self, fleet: list[tuple[float, float, int]], data: st.DataObject
    ) -> None:
        shards: dict[int, list[tuple[float, float, int]]] = defaultdict(list)
        for device in fleet:
            shards[data.draw(st.integers(0, 3))].append(device)
        sums = [PartialSum.of([d[:2] for d in shard], [d[2] for d in shard]) for shard in shards.values()]
        heard = [each for each in sums if each.samples]
        merged = fedavg([each.mean for each in heard], [each.samples for each in heard])
        whole = fedavg([d[:2] for d in fleet], [d[2] for d in fleet])
        np.testing.assert_allclose(merged, whole, rtol=1e-9, atol=1e-6)
        assert sum(each.devices for each in sums) == len(fleet)

    @given(st.tuples(fleets, fleets, fleets))
    def test_merges_in_any_order_and_grouping(self, three: tuple[list[tuple[float, float, int]], ...]) -> None:
        a, b, c = (PartialSum.of([d[:2] for d in fleet], [d[2] for d in fleet]) for fleet in three)
        assert ((a + b).weighted == (b + a).weighted).all()
        np.testing.assert_allclose(((a + b) + c).weighted, (a + (b + c)).weighted, rtol=1e-9, atol=1e-3)
        assert ((a + b) + c).samples == (a + (b + c)).samples

    def test_grows_device_by_device(self) -> None:
        grown = PartialSum.empty(2).add(np.array([1.0, 2.0]), 2).add(np.array([4.0, 8.0]), 1)
        np.testing.assert_allclose(grown.mean, [2.0, 4.0])
        assert (grown.samples, grown.devices) == (3, 2)

    @pytest.mark.parametrize(
        ("models", "samples"),
        [([[1.0]], [1, 2]), ([1.0], [1]), ([[np.nan]], [1]), ([[1e308], [1e308]], [9, 9]), ([[1.0]], [-1])],
    )
    def test_refuses_what_cannot_be_summed_up(self, models: list[Any], samples: list[int]) -> None:
        with pytest.raises(BadUpdate):
            PartialSum.of(models, samples)

    def test_refuses_another_model_and_a_mean_of_nothing(self) -> None:
        with pytest.raises(BadUpdate, match="2 and 3 parameters"):
            PartialSum.empty(2) + PartialSum.empty(3)
        with pytest.raises(BadUpdate, match="nothing to weigh by"):
            _ = PartialSum.empty(2).mean


class TestWhatASenderGave:
    def test_survives_its_bytes(self) -> None:
        whole = part("mote-7", 0.1, samples_seen=3, base_version=2, loss=0.5, devices=4)
        again = Part.from_bytes(whole.to_bytes())
        assert (again.theta == whole.theta).all()
        assert replace(again, theta=whole.theta) == whole

    def test_is_read_from_an_update(self) -> None:
        said = {"cohort": "x", "sensors": ["t"], "samples_seen": 5, "base_version": 1, "loss": 0.25}
        weights = WeightsMessage.model_validate(network.to_message(np.array([2.0, 1.0]), TINY))
        update = LocalUpdate(device_id="a", weights=weights, sample_count=7, timestamp=NOW, metadata=said)
        found = Part.from_update(read_message(update))
        np.testing.assert_array_equal(found.theta, [2.0, 1.0])
        assert (found.samples, found.samples_seen, found.base_version, found.loss, found.devices) == (7, 5, 1, 0.25, 1)

    @pytest.mark.parametrize(
        "said",
        [
            {"devices": -1}, {"devices": 0}, {"devices": 8}, {"devices": 1.5}, {"samples_seen": "3"},
            {"base_version": True}, {"cohort": "a\nb"}, {"cohort": 5}, {"cohort": "x" * 129},
        ],
    )  # fmt: skip
    def test_is_refused_where_it_would_spoil_a_sum(self, said: dict[str, Any]) -> None:
        weights = WeightsMessage.model_validate(network.to_message(np.zeros(2), TINY))
        update = LocalUpdate(device_id="a", weights=weights, sample_count=7, timestamp=NOW, metadata=said)
        with pytest.raises(BadUpdate):
            read_message(update)

    def test_is_refused_where_its_time_has_none_in_utc(self) -> None:
        weights = WeightsMessage.model_validate(network.to_message(np.zeros(2), TINY))
        time = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))
        with pytest.raises(BadUpdate, match="no time in UTC"):
            read_message(LocalUpdate(device_id="a", weights=weights, sample_count=7, timestamp=time))

    @pytest.mark.parametrize("loss", [10**400, -1.0, True, float("nan"), "much"])
    def test_has_no_error_where_it_says_nonsense(self, loss: Any) -> None:
        weights = WeightsMessage.model_validate(network.to_message(np.zeros(2), TINY))
        update = LocalUpdate(device_id="a", weights=weights, sample_count=7, timestamp=NOW, metadata={"loss": loss})
        assert Part.from_update(read_message(update)).loss is None

    def test_a_device_counts_once_by_its_latest_weights_and_all_its_samples(self) -> None:
        early, late = part(value=1.0, samples_seen=10), part(value=5.0, samples_seen=20)
        for both in (early.then(late), late.then(early)):
            assert (both.theta == 5.0).all()
            assert (both.samples, both.devices, both.samples_seen) == (20, 1, 20)

    def test_means_of_many_devices_are_averaged(self) -> None:
        both = part(value=1.0, devices=3, base_version=4).then(part(value=4.0, samples=20, devices=2, base_version=3))
        np.testing.assert_allclose(both.theta, 3.0)
        assert (both.samples, both.devices, both.base_version) == (30, 5, 3)


class TestTheUpdateThatStandsForMany:
    def test_is_an_update_that_says_so(self) -> None:
        parts = [part("a", 1.0, base_version=4, loss=0.2), part("b", 4.0, samples=20, base_version=4, loss=0.4)]
        (made,) = partial_updates(parts, device_id="partial-0", timestamp=NOW, samples_before=100)
        update = LocalUpdate.model_validate(made)
        np.testing.assert_allclose(network.from_message(update.weights)[0], 3.0)
        assert (update.sample_count, update.cohort) == (30, "x")
        assert update.metadata == {
            "cohort": "x", "devices": 2, "samples_seen": 130, "sensors": ["t"], "base_version": 4,
            "loss": pytest.approx(0.3),
        }  # fmt: skip

    def test_is_one_for_each_global_model(self) -> None:
        parts = [part("a", base_version=5), part("b", base_version=4), part("c"), part("d", base_version=5)]
        made = [
            LocalUpdate.model_validate(update)
            for update in partial_updates(parts, device_id="p", timestamp=NOW, samples_before=0)
        ]
        assert [update.metadata.get("base_version") for update in made] == [None, 4, 5]
        assert [update.metadata["devices"] for update in made] == [1, 1, 2]
        assert [update.metadata["samples_seen"] for update in made] == [10, 20, 40]
        assert made[0].timestamp < made[1].timestamp < made[2].timestamp

    def test_is_known_by_its_device_where_it_stands_for_one(self) -> None:
        def names(*devices: str, **said: Any) -> list[str]:
            parts = [part(device, **said) for device in devices]
            made = partial_updates(parts, device_id="p", timestamp=NOW, samples_before=0)
            return [update["device_id"] for update in made]

        assert names("a") == names("a") != names("b")
        assert names("a", "b") == names("c", "d") == names("a", devices=2) == ["p"]

    def test_is_several_where_one_would_stand_for_too_many_samples(self) -> None:
        parts = [part(device, samples=400_000_000) for device in "abcde"]
        made = partial_updates(parts, device_id="p", timestamp=NOW, samples_before=0)
        updates = [LocalUpdate.model_validate(update) for update in made]
        assert [update.metadata["devices"] for update in updates] == [2, 2, 1]
        assert sum(update.sample_count for update in updates) == 2_000_000_000
        assert parts[0].then(parts[0]).then(parts[0]).samples == 1_000_000_000

    def test_travels_under_a_name_of_its_own_for_each_cohort(self) -> None:
        names = {sender_name("partial-0", cohort, TINY) for cohort in ("x", "y")}
        names.add(sender_name("partial-0", "x", Architecture(2, (), 1)))
        assert len(names) == 3


def test_a_fleet_is_spread_evenly_over_shards() -> None:
    counts = np.bincount([shard_of(f"mote-{i}", 8) for i in range(8_000)], minlength=8)
    assert counts.min() > 900


@pytest.mark.servers
def test_a_job_sends_of_each_shard_what_its_devices_learned() -> None:
    paths = [str(PROJECT), sysconfig.get_path("purelib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAVA_HOME": str(find_java_home())}
    done = subprocess.run(
        [sys.executable, "-m", "tests.partial_job", "thread"],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    passed_on = [value for key, _, value in lines if key == "key"]
    assert passed_on == ["?"], done.stderr[-2_000:]
    sent: dict[str, list[LocalUpdate]] = defaultdict(list)
    for key, _, value in lines:
        if key != "key":
            update = LocalUpdate.model_validate(json.loads(value))
            assert update.device_id == key
            shard = "-".join(key.split("-")[:3])  # its device stands behind, where there is only one
            sent[shard].append(update)
    assert len(sent) == partial_job.SHARDS
    learned = np.zeros(partial_job.DEVICES)
    for updates in sent.values():
        counted, last = 0, NOW - timedelta(days=1)
        for update in updates:
            counted += update.sample_count
            theta, _ = network.from_message(update.weights)
            learned += theta * update.sample_count
            said = update.metadata
            assert said["samples_seen"] == counted
            assert said["devices"] == np.count_nonzero(theta)
            assert said["base_version"] == 3 + np.flatnonzero(theta)[0] % 2
            assert len({device % 2 for device in np.flatnonzero(theta)}) == 1
            assert update.timestamp > last
            last = update.timestamp
    assert sum(map(len, sent.values())) < partial_job.UPDATES / 2
    devices = np.arange(partial_job.DEVICES)
    expected = (1 + devices) * (partial_job.UPDATES // partial_job.DEVICES)
    lost = partial_job.UNREADABLE % partial_job.DEVICES
    expected[lost] -= 1 + lost
    np.testing.assert_allclose(learned, expected)
