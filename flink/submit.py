"""Keeps the learning job on a cluster: submits it, watches it, and submits it again from its newest checkpoint.

The embedded cluster and a foreign one (`flink.rest_url`) go the same way: `flink run` over REST.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import zipfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from flead.errors import FleadError, Unavailable
from flink.cluster import HOME
from flink.job_config import JobConfig
from flink.rest import FlinkRest, Job

log = logging.getLogger(__name__)

SHIPPED = ("flead", "flink")
SUBMISSIONS = 5
"""Submissions within `WINDOW_S` before the job is given up."""
WINDOW_S = 600.0
POLL_S = 0.5


class JobGivenUp(FleadError):
    """The job kept failing; the message holds the cause."""

    exit_code = 70


def package(project: Path, target: Path) -> Path:
    """Zip what the workers get: exactly `flead/` and `flink/`, the same bytes for the same code."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for folder in SHIPPED:
            for path in sorted((project / folder).rglob("*.py")):
                entry = zipfile.ZipInfo(str(path.relative_to(project)))
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def submit(
    url: str,
    archive: Path,
    connector: Path,
    python: str,
    config: JobConfig,
    environment: Mapping[str, str],
    restore: str | None,
) -> None:
    """Submit the job over REST.

    Parameters
    ----------
    archive, connector:
        what is shipped: our code (`package`) and Flink's Kafka connector
    python:
        the interpreter on the cluster's machines
    environment:
        of `flink.cluster.Cluster`: where Java and Flink's configuration are
    restore:
        the checkpoint or savepoint to continue from

    Raises
    ------
    Unavailable
        with the last lines of what Flink said
    """
    where = urlsplit(url)
    command = [str(HOME / "bin" / "flink"), "run", "--detached", "-m", f"{where.hostname}:{where.port or 80}"]
    command += ["-pyexec", python, "-pyclientexec", sys.executable, "-pyfs", str(archive), "-pym", "flink.job"]
    command += ["--jarfile", str(connector)]
    if restore:
        command += ["--fromSavepoint", restore]
        if config.readings_id:  # what it holds of another Kafka is left behind
            command += ["--allowNonRestoredState"]
    command += ["--config", config.model_dump_json()]
    try:
        done = subprocess.run(  # noqa: S603  # the command line is ours
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"Flink at {url} did not take the job within 120 s") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        causes = [line for line in lines if line.startswith(("Caused by", "pyflink", "org.apache")) or "Error" in line]
        raise Unavailable(f"Flink at {url} refused the job: {' | '.join((causes or lines)[-3:])[:1000]}")


def newest_local_restore_point(*folders: Path) -> str | None:
    """The newest complete checkpoint or savepoint under these folders; an unfinished one has no `_metadata`."""
    found = [metadata for folder in folders for metadata in folder.rglob("_metadata")]
    newest = max(found, key=lambda metadata: metadata.stat().st_mtime, default=None)
    return None if newest is None else file_uri(newest.parent)


def file_uri(path: Path) -> str:
    """A folder's URI as Flink reads it: nothing in it is escaped.

    >>> file_uri(Path("/data/run 1"))
    'file:///data/run 1'
    """
    return f"file://{path}"


class JobKeeper:
    """Keeps one run of the job alive on a cluster until told to stop.

    Parameters
    ----------
    url:
        Flink's REST interface
    submit:
        submits the job from a restore point (or anew, for None)
    savepoints:
        URI of the folder for savepoints
    remembered:
        file that the newest restore point is kept in, for clusters whose checkpoints lie elsewhere
    stopping:
        says when to end
    """

    def __init__(
        self,
        url: str,
        submit: Callable[[str | None], None],
        checkpoints: str,
        savepoints: str,
        remembered: Path,
        stopping: Callable[[], bool],
    ) -> None:
        self._rest = FlinkRest(url)
        self._submit = submit
        self._folders = [_local(uri) for uri in (checkpoints, savepoints)]
        self._savepoints = savepoints
        self._remembered = remembered
        self._stopping = stopping
        self._submissions: deque[float] = deque()
        self._trouble = "it disappeared from the cluster"

    def run(self) -> None:
        """Watch until `stopping`, then stop the job with a savepoint.

        Raises
        ------
        JobGivenUp
            after `SUBMISSIONS` submissions within ten minutes
        """
        waiting_since = time.monotonic()
        while not self._stopping():
            try:
                job = self._rest.job()
                if job is None or job.is_over:
                    self._submit_again(job)  # without waiting for TaskManagers: the job waits for slots by itself
                else:
                    self._remember(job)
                waiting_since = time.monotonic()
            except Unavailable as error:
                self._trouble = str(error)
                if time.monotonic() - waiting_since > 10.0:
                    log.warning("%s", error)
                    waiting_since = time.monotonic()
            time.sleep(POLL_S)
        self._stop()

    def restore_point(self) -> str | None:
        """Where to continue from: the newest complete checkpoint or savepoint."""
        folders = [folder for folder in self._folders if folder is not None]
        local = newest_local_restore_point(*folders) if folders else None
        if local is None and self._remembered.exists():
            return self._remembered.read_text().strip() or None
        return local

    def _submit_again(self, failed: Job | None) -> None:
        now = time.monotonic()
        while self._submissions and now - self._submissions[0] > WINDOW_S:
            self._submissions.popleft()
        if len(self._submissions) >= SUBMISSIONS:
            cause = self._rest.last_error(failed.job_id) if failed else self._trouble
            raise JobGivenUp(f"the learning job failed {SUBMISSIONS} times within ten minutes: {cause}")
        self._submissions.append(now)
        restore = self.restore_point()
        log.info("submitting the learning job %s", f"from {restore}" if restore else "without earlier state")
        self._submit(restore)
        log.info("submitted in %.1f s", time.monotonic() - now)

    def _remember(self, job: Job) -> None:
        newest = self._rest.newest_checkpoint(job.job_id)
        if newest and (not self._remembered.exists() or self._remembered.read_text() != newest):
            self._remembered.parent.mkdir(parents=True, exist_ok=True)
            self._remembered.write_text(newest)

    def _stop(self) -> None:
        try:
            job = self._rest.job()
            if job is not None and job.state == "RUNNING":
                where = self._rest.stop_with_savepoint(job.job_id, self._savepoints)
                self._remembered.write_text(where)
                log.info("stopped with a savepoint at %s", where)
        except Unavailable as error:
            log.warning("stopped without a savepoint: %s", error)


def _local(uri: str) -> Path | None:
    """The folder that a file URI names; None for another file system."""
    return Path(uri.removeprefix("file:").removeprefix("//")) if uri.startswith("file:") else None
