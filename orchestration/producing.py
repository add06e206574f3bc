"""Sends readings from a file or the simulator into Kafka, at a pace; killed, it goes on where it was."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from data.formats import Rejected
from data.replay import Pace, replay
from data.simulate import simulate
from flead.errors import BadDataset, Unavailable
from flead.messages import DeadLetter, Reading, Source
from kafka.client import ReadingProducer
from orchestration.files import write_atomically

LOG = logging.getLogger(__name__)

SIMULATED = "simulated"
SEED = 7
SAVE_EVERY_S = 0.5
Record = Reading | Rejected


@dataclass
class Progress:
    """How far sending has come; kept in a file so that a killed producer can go on.

    Attributes
    ----------
    position:
        records of the source that have been dealt with
    first_sent_ms, last_sent_ms:
        Unix time, ms
    """

    source: str = ""
    position: int = 0
    sent: int = 0
    delivered: int = 0
    failed: int = 0
    rejected: int = 0
    first_sent_ms: int | None = None
    last_sent_ms: int | None = None
    finished: bool = False
    last_error: str | None = None


def open_source(
    data: str, *, loop: bool, devices: int, on_progress: Callable[[int], None] | None = None
) -> Iterator[Record]:
    """The records that `--data` names: a file, or `simulated`.

    Raises `BadDataset` where it is no readable file of readings.
    """
    if data == SIMULATED:
        return iter(simulate(devices, seed=SEED))
    path = Path(data).expanduser()
    if not path.exists():
        raise BadDataset(f"{data} does not exist: give --data a file of readings, `intel-lab` or `{SIMULATED}`")
    return replay(path, loop=loop, on_progress=on_progress)


def load_progress(path: Path, source: str) -> Progress:
    """Where an earlier producer of the same source left off; anew where there was none or it had finished."""
    try:
        earlier = Progress(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        earlier = Progress()
    return earlier if earlier.source == source and not earlier.finished else Progress(source=source)


def send(
    records: Iterator[Record],
    producer: ReadingProducer,
    pace: Pace,
    progress: Progress,
    *,
    save: Callable[[Progress], None],
    for_s: float | None,
    stopping: Callable[[], bool],
    in_time: bool = False,
) -> Progress:
    """Send records until they end, `for_s` seconds have passed since the first, or `stopping`.

    A rejected row goes to the dead letters.

    Parameters
    ----------
    in_time:
        a replay that has come to the present goes on with it: each reading is held back until its time has come, for
        one from the future would be refused

    Raises
    ------
    Unavailable
        where readings could not be delivered at the end
    """
    failed_before = progress.failed
    saved = begun = time.monotonic()
    if progress.first_sent_ms is not None:  # another process began this: its time counts
        begun -= time.time() - progress.first_sent_ms / 1000

    def settle(limit_s: float) -> int:
        """Wait for Kafka; only then is the position safe to go on from."""
        waiting = producer.flush(limit_s)
        delivery = producer.snapshot()
        progress.failed = failed_before + delivery.failed
        progress.delivered = progress.sent - progress.failed - waiting
        progress.last_error = delivery.last_error
        return waiting

    def save_now_and_then() -> None:
        nonlocal saved
        if time.monotonic() - saved >= SAVE_EVERY_S:
            if settle(5.0) == 0:
                save(progress)
            saved = time.monotonic()

    def is_over() -> bool:
        if stopping():
            return True
        return for_s is not None and progress.first_sent_ms is not None and time.monotonic() - begun >= for_s

    held = False
    for record in pace.over(itertools.islice(records, progress.position, None)):
        while in_time and (ahead := _ahead_s(record)) > 0 and not is_over():
            if not held:
                LOG.warning("the replay has come to the present: the next reading is sent in %.0f s", ahead)
            held = True
            pace.sleep(min(ahead, SAVE_EVERY_S))
            save_now_and_then()
        if is_over():
            break
        _send_one(record, producer, progress)
        if progress.first_sent_ms is None and progress.sent:
            progress.first_sent_ms, begun = _now_ms(), time.monotonic()
        save_now_and_then()
    progress.last_sent_ms = _now_ms()
    undelivered = settle(30.0)
    progress.finished = not undelivered and not progress.failed
    save(progress)
    if undelivered or progress.failed:
        raise Unavailable(
            f"{undelivered + progress.failed} of {progress.sent} readings were not delivered: "
            f"{progress.last_error or 'Kafka did not answer in time'}"
        )
    return progress


def _send_one(record: Record, producer: ReadingProducer, progress: Progress) -> None:
    progress.position += 1
    if isinstance(record, Reading):
        producer.send(record)
        progress.sent += 1
        return
    source = Source(progress.source, 0, record.number)
    producer.send_dead_letter(DeadLetter(record.reason, record.detail, source, record.line, datetime.now(UTC)))
    progress.rejected += 1


def _ahead_s(record: Record) -> float:
    """How far a reading is ahead of the present, s; a row that is none is not."""
    return record.timestamp.timestamp() - time.time() if isinstance(record, Reading) else 0.0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def saver(path: Path) -> Callable[[Progress], None]:
    """Keeps progress in a file."""
    return lambda progress: write_atomically(path, json.dumps(asdict(progress)))
