from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flead.errors import NotThere, Unavailable
from flead.messages import GlobalModel, WeightsMessage
from kafka.client import make_producer
from kafka.topics import ALERTS, PREDICTIONS
from storage.rounds import Trust
from tests.fixtures_storage import wait_until
from tests.test_console_fleet import NOW, alert, prediction
from visualization.console.feed import Feed
from visualization.console.fleet import Fleet
from visualization.console.live import FACTS_S, LOST_S, ROUNDS, Frame, Live, Page
from visualization.console.rollout import KEPT_OUT, SHOWN, Difference, versions_shown
from visualization.console.words import about_devices, about_model, about_pipeline

UPDATED = datetime.fromtimestamp(NOW, UTC)
WEIGHTS = {
    "weights": [[[1.0]]], "biases": [[1.0]], "architecture": {"input_size": 1, "hidden_sizes": [], "output_size": 1},
}  # fmt: skip


class Server:
    """What the console asks the global server, without one; it is its own `versions` and `quarantine`."""

    def __init__(self) -> None:
        self.rounds = 1
        self.stored = True
        self.asked = 0
        self.on_trial: int | None = None
        self.kept_out: list[Trust] = []
        self.versions = self.quarantine = self

    def summary(self) -> dict[str, dict[str, int]]:
        return {"t": {"rounds": self.rounds, "pending_updates": 2, "unique_devices": 3}}

    def history(self, cohort: str, limit: int = 60, *, devices: bool = True) -> list[dict[str, Any]]:
        self.asked += 1
        if not self.stored:
            raise Unavailable("away")
        return [
            {
                "cohort": cohort, "round": n, "timestamp": UPDATED, "num_devices": 3, "total_samples": 300,
                "aggregation_strategy": "fedavg", "stage": "canary" if n == self.on_trial else "stable",
                "metrics": {"loss": 0.5, "left_out": 1.0},
            }
            for n in range(1, self.rounds + 1)
        ][-limit:]  # fmt: skip

    def is_stored(self) -> bool:
        return self.stored

    def model(self, cohort: str) -> GlobalModel:
        stable = self.rounds - (self.on_trial is not None)
        return GlobalModel(
            cohort=cohort, version=stable, timestamp=UPDATED, num_devices=3, total_samples=300,
            aggregation_strategy="fedavg", weights=WeightsMessage.model_validate(WEIGHTS),
        )  # fmt: skip

    def trial(self, cohort: str, now: datetime) -> dict[str, Any] | None:
        if self.on_trial is None:
            return None
        return {
            "version": self.on_trial, "since": UPDATED, "until": now, "share": 0.1, "expected": 1, "others": 2,
            "canaries": 0, "controls": 0, "rise": None, "verdict": "wait", "why": "0 of 1 canaries", "automatic": True,
        }  # fmt: skip

    def compare(self, cohort: str, a: int, b: int) -> Difference:
        raise NotThere(f"{cohort} {a} {b}")

    def list(self) -> list[Trust]:
        if not self.stored:
            raise Unavailable("away")
        return self.kept_out


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Rig:
    """A live console without Kafka, and a page that keeps its frames."""

    def __init__(self, folder: Path) -> None:
        self.fleet, self.server, self.clock = Fleet(), Server(), Clock()
        self.status_file = folder / "status.json"
        self.feed = Feed(self.fleet, "127.0.0.1:1", clock=self.clock)
        self.feed.problem = None
        self.live = Live(self.fleet, self.feed, self.server, self.status_file, {}, clock=self.clock)

    def page(self) -> tuple[Page, list[Frame]]:
        frames: list[Frame] = []
        page = Page(frames.append)
        self.live.pages.add(page)
        return page, frames

    def serve(self, after_s: float = 0.4) -> None:
        self.clock.now += after_s
        asyncio.run(self.live.serve())


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_page_gets_all_first_and_then_what_changes(rig: Rig) -> None:
    page, frames = rig.page()
    rig.fleet.take([prediction("a"), prediction("b")])
    rig.serve()
    assert frames[0]["anew"]
    assert {name for name, _, _ in frames[0]["devices"]} == {"a", "b"}
    page.drawn = True
    rig.fleet.take([alert("a")])
    rig.serve()
    assert (frames[1]["anew"], [name for name, _, _ in frames[1]["devices"]]) == (False, ["a"])


def test_a_page_that_falls_behind_skips_frames_and_misses_nothing(rig: Rig) -> None:
    (slow, behind), (quick, all_frames) = rig.page(), rig.page()
    rig.fleet.take([prediction("a")])
    rig.serve()
    for n in range(3):
        quick.drawn = True
        rig.fleet.take([prediction(f"more-{n}")])
        rig.serve()
    assert (len(behind), len(all_frames)) == (1, 4)
    slow.drawn = True
    rig.serve()
    assert {name for name, _, _ in behind[1]["devices"]} == {"more-0", "more-1", "more-2"}


def test_a_page_whose_answer_was_lost_goes_on(rig: Rig) -> None:
    _, frames = rig.page()
    rig.serve()
    rig.serve(LOST_S / 2)
    assert len(frames) == 1
    rig.serve(LOST_S)
    assert len(frames) == 2


def test_a_page_whose_user_may_look_no_longer_is_closed_and_the_others_go_on(rig: Rig) -> None:
    ended, closed = [False], []
    (page, frames), (other, all_frames) = rig.page(), rig.page()

    async def may_look() -> bool:
        return not ended[0]

    page.may_look, page.close = may_look, lambda: closed.append(True)
    rig.serve()
    ended[0] = True
    for _ in range(3):
        page.drawn = other.drawn = True
        rig.serve()
    assert (len(frames), len(all_frames), closed) == (1, 4, [True])
    assert rig.live.pages == {other}


def test_a_page_that_is_left_while_its_frame_is_made_gets_none(rig: Rig) -> None:
    page, frames = rig.page()

    async def leaves() -> bool:
        rig.live.pages.discard(page)
        return True

    page.may_look = leaves
    rig.serve()
    assert frames == []


def test_pages_that_saw_the_same_share_their_changes(rig: Rig) -> None:
    rig.fleet.take([prediction("a")])
    one, other, late = rig.live.frames([(0, "a", 0), (0, "a", 0), (0, None, 0)], NOW)
    assert one["devices"] is late["devices"]
    assert one["device"] is other["device"]
    assert late["device"] is None


def test_a_device_is_told_as_it_goes_on_and_once_more_where_it_is_opened_anew(rig: Rig) -> None:
    page, frames = rig.page()
    page.show("a")
    rig.serve()
    assert frames[0]["device"] == {"name": "a", "sensors": None}
    rig.fleet.take([prediction("a")])
    for expected_rows in (1, 0):
        page.drawn = True
        rig.serve()
        assert len(frames[-1]["device"]["rows"]["time"]) == expected_rows
    page.show("a")
    page.drawn = True
    rig.serve()
    assert frames[-1]["device"]["anew"]


def test_rounds_are_read_when_there_are_new_ones_and_kept_while_mongodb_is_away(rig: Rig) -> None:
    frames = rig.live.frames([(0, None, 0)], NOW)
    assert frames[0]["models"][0]["versions"] == [
        {
            "version": 1, "at": NOW, "stage": "stable", "parent": None, "devices": 3, "samples": 300,
            "strategy": "fedavg", "loss": 0.5, "rise": None, "epsilon": None, "left_out": 1, "decision": "",
            "decided_at": None,
        }
    ]  # fmt: skip
    rig.live.frames([(0, None, 0)], NOW + FACTS_S)
    assert rig.server.asked == 1
    rig.server.stored, rig.server.rounds = False, 2
    frame = rig.live.frames([(0, None, 0)], NOW + 2 * FACTS_S)[0]
    assert (frame["stored"], frame["answers"]["pipeline"]["headline"]) == (False, "MongoDB does not answer")
    assert numbers(frame) == [1]
    rig.server.stored = True
    frame = rig.live.frames([(0, None, 0)], NOW + 3 * FACTS_S)[0]
    assert numbers(frame) == [2, 1]


def numbers(frame: Frame) -> list[int]:
    return [one["version"] for one in frame["models"][0]["versions"]]


def test_versions_are_read_again_where_one_was_promoted_and_the_trial_every_time(rig: Rig) -> None:
    rig.server.rounds = rig.server.on_trial = 2
    frame = rig.live.frames([(0, None, 0)], NOW)[0]
    assert [one["stage"] for one in frame["models"][0]["versions"]] == ["on trial", "stable"]
    assert (frame["models"][0]["trial"]["since"], frame["models"][0]["trial"]["until"]) == (NOW, NOW)
    assert "Version 2 is on trial with 1 of 3 devices." in frame["answers"]["model"]["detail"]
    frame = rig.live.frames([(0, None, 0)], NOW + FACTS_S)[0]
    assert (frame["models"][0]["trial"]["until"], rig.server.asked) == (NOW + FACTS_S, 1)
    rig.server.on_trial = None
    rig.live.look_again()
    frame = rig.live.frames([(0, None, 0)], NOW + FACTS_S + 0.1)[0]
    assert [one["stage"] for one in frame["models"][0]["versions"]] == ["stable", "was stable"]
    assert frame["models"][0]["trial"] is None


def test_a_page_is_told_of_a_few_versions_and_the_stable_one_wherever_it_is(rig: Rig) -> None:
    rig.server.rounds = 3 * ROUNDS
    model = rig.live.frames([(0, None, 0)], NOW)[0]["models"][0]
    assert (len(model["versions"]), len(model["numbers"])) == (SHOWN, ROUNDS)
    found = [one | {"stage": "rolled_back"} for one in rig.server.history("t", ROUNDS)]
    shown = versions_shown(found, found[0]["round"], None)
    assert [one["stage"] for one in shown] == ["rolled back"] * SHOWN + ["stable"]
    assert shown[0]["decision"] == "a later round took its place"


def test_who_is_kept_out_is_told_and_counted_and_kept_while_mongodb_is_away(rig: Rig) -> None:
    nothing = rig.live.frames([(0, None, 0)], NOW)[0]["quarantine"]
    assert nothing == {"count": 0, "devices": []}
    rig.server.kept_out = [
        Trust(f"d{n}", "t", 0.0, 2.0, "rejected" if n else "quarantined", "too far", UPDATED)
        for n in range(KEPT_OUT + 1)
    ]
    for stored in (True, False):
        rig.server.stored = stored
        rig.live.look_again()
        kept = rig.live.frames([(0, None, 0)], NOW)[0]["quarantine"]
        assert (kept["count"], len(kept["devices"])) == (KEPT_OUT + 1, KEPT_OUT)
    assert kept["devices"][0] == {
        "device": "d0", "cohort": "t", "for_good": False, "reason": "too far", "since": NOW, "reputation": 0.25,
        "who": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "written", [None, b"", b"{", b"[]", b'{"services": null}', b'{"updated": 7, "state": "running"}']
)
def test_any_run_folder_will_do(rig: Rig, written: bytes | None) -> None:
    if written is not None:
        rig.status_file.write_bytes(written)
    run = rig.live.frames([(0, None, 0)], NOW)[0]["run"]
    assert run is None or run["state"] == "over"


def test_a_run_is_shown(rig: Rig) -> None:
    status = {
        "state": "running", "updated": UPDATED.isoformat(), "lag": {"flead.readings": 7},
        "services": {"kafka": {"state": "running", "restarts": 0}, "learner": {"state": "restarting", "restarts": 2}},
    }  # fmt: skip
    rig.status_file.write_text(json.dumps(status))
    frame = rig.live.frames([(0, None, 0)], NOW)[0]
    assert frame["run"]["services"] == [["kafka", "running", 0], ["learner", "restarting", 2]]
    assert frame["answers"]["pipeline"]["headline"] == "learner is down"
    assert rig.live.frames([(0, None, 0)], NOW + 60)[0]["run"]["state"] == "over"


def test_what_the_page_says_of_devices() -> None:
    tally = {"alarm": 0, "noted": 0, "silent": 0, "learning": 0, "ok": 0}
    assert about_devices(tally, []).level == "unknown"
    assert about_devices(tally | {"ok": 3}, [])[:2] == ("good", "All 3 devices are well")
    silent = about_devices(tally | {"ok": 3, "silent": 1}, [])
    assert silent == ("watch", "1 of 4 devices silent", "The others are well.")
    assert about_devices(tally | {"ok": 3, "silent": 1, "learning": 2}, []).detail == "2 still learning"
    assert about_devices(tally | {"silent": 4}, [])[:2] == ("bad", "No device is sending")
    assert about_devices(tally | {"ok": 1, "noted": 1}, ["b"])[:2] == ("good", "No lasting trouble")
    many = about_devices(tally | {"alarm": 9}, ["a", "b", "c", "d", "e"])
    assert many == ("bad", "9 of 9 devices need a look", "a, b, c, d and others")


@pytest.mark.parametrize(
    ("skills", "level", "headline"),
    [
        ([], "unknown", "Too early to say"),
        ([(0, 500, 0.1)], "unknown", "Too early to say"),
        ([(0, 500, 0.1), (1, 5, 0.9)], "unknown", "Too early to say"),
        ([(0, 500, 0.1), (1, 500, None)], "unknown", "Too early to say"),
        ([(0, 500, 0.1), (1, 500, 0.2)], "good", "Getting better"),
        ([(0, 500, -0.2), (1, 500, -0.1)], "good", "Getting better"),
        ([(0, 500, 0.1), (1, 500, 0.105)], "good", "Holding its level"),
        ([(0, 500, 0.1), (1, 500, 0.0)], "watch", "Getting worse"),
    ],
)
def test_what_the_page_says_of_the_model(skills: list[tuple[int, int, float]], level: str, headline: str) -> None:
    assert about_model(skills, 3)[:2] == (level, headline)
    assert about_model(skills, 0).headline == "No global model yet"


def test_what_the_page_says_of_the_pipeline() -> None:
    well: dict[str, Any] = {"status": None, "kafka": None, "stored": True, "newest": NOW, "p99": 32.0, "now": NOW}
    assert about_pipeline(**well) == ("good", "Running well", "99 of 100 readings are predicted within 32 ms")
    assert about_pipeline(**well | {"kafka": "refused"}).headline == "Kafka does not answer"
    assert about_pipeline(**well | {"stored": False}).headline == "MongoDB does not answer"
    assert about_pipeline(**well | {"newest": None}).headline == "Nothing flows yet"
    assert about_pipeline(**well | {"now": NOW + 90}).headline == "Nothing new for 90 s"
    assert about_pipeline(**well | {"p99": 9_000.0})[:2] == ("watch", "Running behind")


@pytest.mark.servers
def test_the_feed_reads_what_was_there_a_moment_ago_and_what_comes(kafka_servers: str) -> None:
    producer = make_producer(kafka_servers)
    producer.produce(PREDICTIONS, prediction("feed-before").value, "feed-before")
    producer.flush(10)
    fleet = Fleet()
    feed = Feed(fleet, kafka_servers)
    feed.start()
    try:
        wait_until(lambda: fleet.device("feed-before", 0) is not None)
        producer.produce(PREDICTIONS, prediction("feed-after").value, "feed-after")
        producer.produce(ALERTS, b"?", "feed-after")
        producer.flush(10)
        wait_until(lambda: fleet.device("feed-after", 0) is not None and fleet.unreadable > 0)
        assert feed.problem is None
    finally:
        feed.stop()


def test_the_future_is_not_the_past() -> None:
    fleet = Fleet()
    fleet.take([prediction(at=NOW + timedelta(days=1).total_seconds())])
    assert fleet.figures(NOW)["last_minute"]["prediction"] == 0
