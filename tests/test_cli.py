"""The `flead` command as people and scripts meet it: help, files of readings, exit codes, one line for each error."""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from config.settings import PROJECT
from flead.errors import FleadError
from flead.messages import Reading
from orchestration.cli import _tail, app
from orchestration.files import check_writable, output_file, write_atomically
from orchestration.status import LOCK_FILE, STATUS_FILE, Status, only_run, running_pid
from tests import fixtures_run
from tests.fixtures_cli import Ended, Flead

NAMED = {
    "up", "down", "status", "logs", "produce", "consume", "serve", "learn", "archive",
    "data download", "data simulate", "data check", "evaluate", "detect", "export",
}  # fmt: skip
KAFKA = "FLEAD_KAFKA__PORT"
HEAVY = {"confluent_kafka", "matplotlib", "numba", "numpy", "pydantic", "pymongo", "pyflink", "sklearn"}


def names(group: object, prefix: str = "") -> Iterator[str]:
    """Every subcommand below a command."""
    if isinstance(group, TyperGroup):
        for name, command in group.commands.items():
            yield f"{prefix}{name}"
            yield from names(command, f"{prefix}{name} ")


COMMANDS = list(names(get_command(app)))


pytestmark = pytest.mark.usefixtures("run_dir")


def refused(done: Ended) -> str:
    """The one line that says why a command was refused; a list may follow it."""
    line, *items = done.err.splitlines()
    assert done.code == 1
    assert done.out == ""
    assert line.startswith("flead: ")
    assert all(item.startswith("  - ") for item in items)
    return line


class TestHelp:
    def test_names_every_command_of_the_contract(self) -> None:
        assert set(COMMANDS) >= NAMED

    @pytest.mark.parametrize("command", ["", *COMMANDS])
    def test_of_every_command_is_there(self, command: str, flead: Flead) -> None:
        shown = flead(*command.split(), "--help")
        assert (shown.code, shown.err) == (0, "")
        assert "Usage: " in shown.out

    def test_waits_for_nothing_heavy(self) -> None:
        command = [sys.executable, "-X", "importtime", "-m", "orchestration", "--help"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
        imported = set(re.findall(r"\| +(\w+)", done.stderr))
        assert "typer" in imported
        assert not imported & HEAVY

    @pytest.mark.parametrize("wrong", ["nonsense", "data check", "up --rate -1", "data simulate x --readings 0"])
    def test_is_pointed_to_where_the_usage_is_wrong(self, wrong: str, flead: Flead) -> None:
        done = flead(*wrong.split())
        assert (done.code, done.out) == (2, "")
        assert re.search(r"Try '.* -h' for help", done.err)


Simulated = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def simulated(flead: Flead) -> Simulated:
    """Runs `flead data simulate` and gives what it wrote."""

    def run(path: Path, *options: object) -> list[dict[str, Any]]:
        done = flead("data", "simulate", path, *options)
        assert (done.code, done.out) == (0, "")
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    return run


class TestSimulate:
    def test_writes_the_same_file_for_the_same_seed_and_another_for_another(
        self, tmp_path: Path, simulated: Simulated
    ) -> None:
        files = [tmp_path / name for name in ("one", "same", "other")]
        for path, seed in zip(files, (3, 3, 4), strict=True):
            simulated(path, "--devices", 5, "--readings", 2000, "--seed", seed)
        one, same, other = (path.read_bytes() for path in files)
        assert one == same
        assert one != other

    def test_writes_so_many_readings_of_so_many_devices_in_order_of_time(
        self, tmp_path: Path, simulated: Simulated
    ) -> None:
        found = simulated(tmp_path / "fleet.jsonl", "--devices", 5, "--readings", 1234)
        readings = [Reading.model_validate_json(json.dumps(each)) for each in found]
        assert len(readings) == 1234
        assert {reading.device_id for reading in readings} == {f"sim-{i}" for i in range(1, 6)}
        assert [r.timestamp for r in readings] == sorted(r.timestamp for r in readings)

    def test_labels_what_a_fault_changed_and_leaves_the_rest_as_it_was(
        self, tmp_path: Path, simulated: Simulated
    ) -> None:
        options = ("--devices", 20, "--readings", 30_000)
        faulty = simulated(tmp_path / "faulty.jsonl", *options)
        sound = simulated(tmp_path / "sound.jsonl", *options, "--no-faults")
        assert not any("fault" in reading.get("metadata", {}) for reading in sound)
        labelled = 0
        for was, now in zip(sound, faulty, strict=True):
            label = now.get("metadata", {})
            if "fault" not in label:
                assert now == was
                continue
            labelled += 1
            assert now["sensors"].keys() == was["sensors"].keys()
            assert now["sensors"][label["fault_sensor"]] is not None
        assert 10 < labelled < len(faulty) / 4

    def test_says_in_one_line_where_it_cannot_write(self, tmp_path: Path, flead: Flead) -> None:
        for path in (tmp_path, tmp_path / "nowhere" / "x"):
            assert f"{path} cannot be written" in refused(flead("data", "simulate", path, "--readings", 1))


INTEL = b"""\
2004-03-04 00:00:00.154 14284 7 19.3 38.1 43.2 2.69
2004-03-04 00:00:26.98 14285 7 20.5666 35.8876  2.65
2004-03-04 00:00:31 14286 99 18.0 40.0 100 2.7
2004-03-03 23:59:30 14283 12 18.0 40.0 100 2.7
2004-03-04 00:00:3
"""
CSV = b"""\
timestamp,device_id,temperature,flow
2024-01-01T00:00:00Z,pump-1,21.5,
2024-01-01 00:01:00,pump-1,21.6,nan
2024-01-01T02:02:00+02:00,pump-2,22,0.5
yesterday,pump-2,22,0.5
2024-01-01T00:03:00Z,pump-2,[/x],0.5
2024-01-01T00:04:00Z,pump-2
"""
LINES = b"""\
{"device_id": "a", "timestamp": "2024-01-01T00:00:00Z", "sensors": {"t": 1.5, "p": null}}
{"device_id": "b", "timestamp": "2024-01-01T00:01:00+00:00", "sensors": {"t": 2}}
{"device_id": "b", "timestamp": "2024-01-01T00:02:00+00:00", "sensors": {}}
{"device_id": "b", "timestamp": "2024-01-01T00:02:00+00:00"}
{"device_id": "b",
"""
FILES: dict[str, tuple[bytes, dict[str, Any], list[int]]] = {
    "lab.txt": (
        INTEL,
        {
            "format": "Intel Lab lines (date time epoch moteid temperature humidity light voltage)",
            "readings": 3,
            "devices": 2,
            "values": {"temperature": 3, "humidity": 3, "light": 2, "voltage": 3},
            "first": "2004-03-03T23:59:30+00:00",
            "last": "2004-03-04T00:00:26.980000+00:00",
            "rejected": {"corrupt_row": 2},
        },
        [3, 5],
    ),
    "pumps.csv": (
        CSV,
        {
            "format": "CSV with a header (timestamp,[device_id,]sensor,...)",
            "readings": 3,
            "devices": 2,
            "values": {"temperature": 3, "flow": 1},
            "first": "2024-01-01T00:00:00+00:00",
            "last": "2024-01-01T00:02:00+00:00",
            "rejected": {"corrupt_row": 3},
        },
        [5, 6, 7],
    ),
    "readings.jsonl": (
        LINES,
        {
            "format": "JSON lines of readings (device_id, timestamp, sensors)",
            "readings": 2,
            "devices": 2,
            "values": {"t": 2, "p": 0},
            "first": "2024-01-01T00:00:00+00:00",
            "last": "2024-01-01T00:01:00+00:00",
            "rejected": {"no_sensors": 1, "missing_field": 1, "not_json": 1},
        },
        [3, 4, 5],
    ),
}


class TestCheck:
    @pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
    @pytest.mark.parametrize("name", FILES)
    def test_counts_what_is_in_a_file_and_names_each_rejected_row(
        self, name: str, packed: bool, tmp_path: Path, flead: Flead
    ) -> None:
        content, expected, rejected = FILES[name]
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if packed else content)
        done = flead("data", "check", path, "--json")
        assert done.code == 0
        assert done.out.count("\n") == 1
        assert json.loads(done.out) == expected
        assert [int(n) for n in re.findall(r"^line (\d+): .", done.err, re.MULTILINE)] == rejected
        assert done.err.count("\n") == len(rejected)

    def test_shows_people_the_same_over_several_lines(self, tmp_path: Path, flead: Flead) -> None:
        content, expected, _ = FILES["pumps.csv"]
        path = tmp_path / "pumps.csv"
        path.write_bytes(content)
        done = flead("data", "check", path)
        assert json.loads(done.out) == expected
        assert done.out.count("\n") > 5

    def test_quotes_a_row_as_it_is(self, tmp_path: Path, flead: Flead) -> None:
        path = tmp_path / "odd.csv"
        path.write_text("timestamp,x\n2024-01-01,1\n2024-01-01,[bold]\n2024-01-01,[/x]\n2024-01-01,:smile:\n")
        done = flead("data", "check", path)
        assert done.code == 0
        for cell in ("[bold]", "[/x]", ":smile:"):
            assert f"x: '{cell}' is not a number" in done.err

    def test_counts_what_was_simulated(self, tmp_path: Path, flead: Flead, simulated: Simulated) -> None:
        path = tmp_path / "fleet.jsonl"
        simulated(path, "--devices", 3, "--readings", 500)
        report = json.loads(flead("data", "check", path, "--json").out)
        assert (report["readings"], report["devices"], report["rejected"]) == (500, 3, {})

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (None, "cannot be read: No such file or directory"),
            (b"", "holds no readings"),
            (b"\n\n", "holds no readings"),
            (b"%PDF-1.7\n\x00\xff[/x]", "has no known format"),
            (b"time,x\n2024-01-01,1\n", "has no known format"),
            (b"timestamp,device_id\n2024-01-01,a\n", "no column beside timestamp and device_id holds a number"),
            (gzip.compress(CSV)[:40], "is a corrupt or truncated gzip file"),
        ],
    )
    @pytest.mark.parametrize("options", [[], ["--json"]], ids=["people", "json"])
    def test_says_in_one_line_what_is_no_file_of_readings(
        self, content: bytes | None, why: str, options: list[str], tmp_path: Path, flead: Flead
    ) -> None:
        path = tmp_path / "some [file].dat"
        if content is not None:
            path.write_bytes(content)
        line = refused(flead("data", "check", path, *options))
        assert why in line
        assert str(path) in line


class TestProduce:
    def test_says_in_one_line_that_no_broker_answers(self) -> None:
        begun = time.monotonic()
        done = fixtures_run.flead("produce", "--data", "simulated", environment=dict(os.environ))
        line = refused(Ended(done.returncode, done.stdout, done.stderr))
        assert f"no Kafka broker answers at 127.0.0.1:{os.environ['FLEAD_KAFKA__PORT']}" in line
        assert time.monotonic() - begun < 40

    def test_looks_at_the_file_first(self, tmp_path: Path, flead: Flead) -> None:
        assert "nowhere.csv cannot be read" in refused(flead("produce", "--data", tmp_path / "nowhere.csv"))


def test_to_look_at_what_is_not_there_makes_nothing(run_dir: Path, flead: Flead) -> None:
    for command in ("mart status", "mart uri", "mart uri --password", "users list", "keys list", "backup x", "status"):
        assert str(run_dir) in refused(flead(*command.split())), command
    assert "--data FILE" in refused(flead("export", "--device", "a", "--format", "npz", "-o", run_dir.parent / "model"))
    assert not run_dir.exists()


def test_a_variable_that_means_nothing_is_told(flead: Flead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEAD_RUNDIR", "/somewhere")
    done = flead("logs")
    assert done.code == 0
    assert "warning: FLEAD_RUNDIR means nothing to FLEAD (FLEAD_RUN_DIR?)" in done.err


class TestAFileThatIsWritten:
    def test_keeps_the_link_that_leads_to_it(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "file")
        with output_file(tmp_path / "link") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "file").read_text() == "new"

    def test_does_not_take_the_place_of_what_is_no_file(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        check_writable(pipe)
        with output_file(pipe) as given:
            assert given == pipe
        assert pipe.is_fifo()

    def test_is_not_what_is_read(self, tmp_path: Path, flead: Flead) -> None:
        table, link = tmp_path / "in.csv", tmp_path / "link.svg"
        table.write_bytes(CSV)
        link.symlink_to(table)
        commands = (
            ("detect", table, "-o", table),
            ("detect", table, "-o", tmp_path / "out.csv", "--plot", link),
            ("evaluate", "--train", table, "--test", table, "--json", link),
            ("export", "--device", "pump-1", "--format", "npz", "--data", table, "-o", link),
        )
        for command in commands:
            assert "is read and would be overwritten" in refused(flead(*command))
        assert table.read_bytes() == CSV

    def test_is_not_there_where_it_was_not_written_to_its_end(self, tmp_path: Path) -> None:
        def killed() -> None:
            with output_file(tmp_path / "file") as temporary:
                temporary.write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            killed()
        assert list(tmp_path.iterdir()) == []

    def test_of_a_status_that_cannot_be_kept_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(FleadError, match=r"status\.json cannot be written"):
            write_atomically(tmp_path / "file" / "status.json", "{}")


class TestARunFolder:
    def test_without_a_run_has_no_status_nothing_to_stop_and_no_logs(self, run_dir: Path, flead: Flead) -> None:
        assert f"there has been no run in {run_dir}" in refused(flead("status"))
        assert f"no log of learner in {run_dir}/logs" in refused(flead("logs", "learner"))
        assert flead("down") == Ended(0, "", f"nothing runs in {run_dir}\n")

    def test_whose_run_is_over_shows_all_of_it_stopped(self, tmp_path: Path, flead: Flead) -> None:
        service = {"state": "running", "pid": 7, "port": 9092, "restarts": 0}
        left = Status("running", "2024-01-01T00:00:00+00:00", str(tmp_path), {"kafka": service}, {"readings": 5})
        (tmp_path / STATUS_FILE).write_text(left.to_json())
        done = flead("status", "--json", "--run-dir", tmp_path)
        left.state, left.services = "stopped", {"kafka": {**service, "state": "stopped", "pid": None}}
        assert (done.code, json.loads(done.out)) == (3, asdict(left))
        shown = flead("status", "--run-dir", tmp_path)
        assert shown.code == 3
        assert re.search(r"kafka +stopped", shown.out)

    def test_shows_pids_and_ports_as_they_are_typed(self, run_dir: Path, flead: Flead) -> None:
        service = {"state": "running", "pid": 16577, "port": 27017, "restarts": 0}
        job = {"id": "a", "state": "FAILED", "restarts": 3}
        now = Status("running", "", "run", {"mongodb": service}, {"readings": 44672}, timings_s={"total": 88}, job=job)
        with only_run(run_dir):
            (run_dir / STATUS_FILE).write_text(now.to_json())
            shown = flead("status")
        assert shown.code == 0
        assert "FLEAD running for 88 s" in shown.out
        assert re.search(r"mongodb +running +16577 +27017 +0 ", shown.out)
        assert re.search(r"learning job +failed +3", shown.out)
        assert "44,672" in shown.out
        over = flead("status").out
        assert "FLEAD stopped after 88 s" in over
        assert "learning job" not in over

    @pytest.mark.parametrize(("kind", "told"), [(errno.EACCES, True), (errno.ENOSPC, True), (errno.EISDIR, False)])
    def test_that_we_may_not_use_is_named_in_one_line(
        self, kind: int, told: bool, flead: Flead, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def denied(_: Path) -> int:
            raise OSError(kind, os.strerror(kind), "/somewhere/up.lock")

        monkeypatch.setattr("orchestration.status.running_pid", denied)
        if told:
            assert refused(flead("down")).startswith(f"flead: /somewhere/up.lock: {os.strerror(kind)}")
        else:
            with pytest.raises(OSError, match=r"up\.lock"):
                flead("down")

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"unknown": 1}'])
    def test_whose_status_cannot_be_read_is_named(self, text: str, run_dir: Path, flead: Flead) -> None:
        run_dir.mkdir()
        (run_dir / STATUS_FILE).write_text(text)
        assert f"{run_dir / STATUS_FILE} was written by another version" in refused(flead("status"))

    def test_shows_the_last_lines_of_a_log(self, run_dir: Path, flead: Flead) -> None:
        (run_dir / "logs").mkdir(parents=True)
        (run_dir / "logs" / "kafka.log").write_text("one\ntwo\nthree\n")
        assert flead("logs") == Ended(0, "kafka\n", "")
        assert flead("logs", "kafka", "-n", 2) == Ended(0, "two\nthree\n", "")

    def test_follows_a_log_that_begins_anew(self, run_dir: Path) -> None:
        path = run_dir / "logs" / "kafka.log"
        path.parent.mkdir(parents=True)
        path.write_text("one\ntwo\n")
        lines = _tail(path, 1, follow=True)
        assert next(lines) == "two\n"
        with path.open("a") as log:
            log.write("three\n")
        path.rename(path.with_name("kafka.log.1"))
        path.write_text("four\n")
        assert [next(lines), next(lines)] == ["three\n", "four\n"]

    def test_that_nobody_uses_is_not_in_use_because_somebody_else_looks(self, run_dir: Path) -> None:
        run_dir.mkdir()
        (run_dir / LOCK_FILE).write_text("1")  # of a run that is over; the number is another process's by now
        with (run_dir / LOCK_FILE).open() as other:
            fcntl.flock(other, fcntl.LOCK_SH)
            assert running_pid(run_dir) is None
            ends = threading.Timer(0.1, lambda: fcntl.flock(other, fcntl.LOCK_UN))
            ends.start()
            with only_run(run_dir):
                assert running_pid(run_dir) == os.getpid()
            ends.join()

    def test_whose_run_has_just_ended_or_is_not_ours_is_stopped_in_one_line(
        self, run_dir: Path, flead: Flead, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def kill(error: type[OSError]) -> Callable[[int, int], None]:
            def killed(_pid: int, _signal: int) -> None:
                raise error

            return killed

        pids = iter([7, None])
        monkeypatch.setattr("orchestration.status.running_pid", lambda _: next(pids))
        monkeypatch.setattr("os.kill", kill(ProcessLookupError))
        assert flead("down") == Ended(0, "", "stopped\n")
        monkeypatch.setattr("orchestration.status.running_pid", lambda _: 7)
        monkeypatch.setattr("os.kill", kill(PermissionError))
        assert "process 7 is another user's" in refused(flead("down"))


def test_readings_of_ones_own_need_no_file(run_dir: Path, flead: Flead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.up.Run.execute", lambda _: Status("stopped", "", str(run_dir)))
    done = flead("up", "--without", "producer", "--data", "/nowhere")
    assert done.code == 0
    assert done.err.startswith(f"the readings are yours to send, to flead.readings at 127.0.0.1:{os.environ[KAFKA]}")


def test_a_run_without_what_it_cannot_do_without_is_refused(flead: Flead) -> None:
    said = refused(flead("up", "--without", "kafka"))
    assert "--without knows analytics, archive, dashboards, producer, not kafka" in said
