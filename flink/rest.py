"""What FLEAD asks of a Flink cluster's REST interface."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx

from flead.errors import Unavailable
from flink.job_config import JOB_NAME


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the job on the cluster. `state` is Flink's: RUNNING, RESTARTING, FAILED, ..."""

    job_id: str
    state: str
    started_ms: int
    tasks: int
    tasks_running: int

    @property
    def is_processing(self) -> bool:
        """Whether every task takes records; a job that runs may still be setting up its tasks."""
        return self.state == "RUNNING" and self.tasks_running == self.tasks > 0

    @property
    def is_over(self) -> bool:
        """Whether this run will never process a record again."""
        return self.state in {"FINISHED", "CANCELED", "FAILED"}


class FlinkRest:
    """A Flink cluster by its REST interface; every method raises `Unavailable` where it does not answer.

    Parameters
    ----------
    url:
        http://host:port
    timeout_s:
        for one answer, s
    """

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def task_managers(self) -> int:
        """How many TaskManagers have registered."""
        return int(self._get("/overview")["taskmanagers"])

    def job(self) -> Job | None:
        """The newest run of the learning job, one that is not over first; None where there was none."""
        jobs = [
            Job(job["jid"], job["state"], job["start-time"], job["tasks"]["total"], job["tasks"]["running"])
            for job in self._get("/jobs/overview")["jobs"]
            if job["name"] == JOB_NAME
        ]
        return max(jobs, key=lambda job: (not job.is_over, job.started_ms), default=None)

    def last_error(self, job_id: str) -> str:
        """What made a job fail last, in one line; empty without one."""
        history = self._get(f"/jobs/{job_id}/exceptions")["exceptionHistory"]["entries"]
        traces = [in_one_line(entry["stacktrace"]) for entry in history if entry.get("stacktrace")]
        causes = [line for line in traces if "Recovery is suppressed" not in line]
        return str((causes or traces or [""])[0])[:500]

    def restarts(self, job_id: str) -> int:
        """How often Flink has restarted this run's tasks."""
        answer = self._get(f"/jobs/{job_id}/metrics", {"get": "numRestarts"})
        return int(float(answer[0]["value"])) if answer else 0

    def newest_checkpoint(self, job_id: str) -> str | None:
        """Where the newest completed checkpoint lies."""
        completed = self._get(f"/jobs/{job_id}/checkpoints")["latest"]["completed"]
        return str(completed["external_path"]) if completed else None

    def stop_with_savepoint(self, job_id: str, target: str, limit_s: float = 60.0) -> str:
        """Let a run finish what it has begun, write a savepoint and end; returns where the savepoint lies."""
        request = {"targetDirectory": target, "drain": False}
        trigger = self._request("POST", f"/jobs/{job_id}/stop", json=request)["request-id"]
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            answer = self._get(f"/jobs/{job_id}/savepoints/{trigger}")
            if answer["status"]["id"] == "COMPLETED":
                if "location" in answer["operation"]:
                    return str(answer["operation"]["location"])
                raise Unavailable(f"Flink could not write a savepoint: {_cause(answer['operation'])}")
            time.sleep(0.1)
        raise Unavailable(f"Flink wrote no savepoint within {limit_s:g} s")

    def _get(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        return self._request("GET", path, params=params)

    def _request(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, path, **options)
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(
                f"Flink at {self.url} does not answer ({error or type(error).__name__}): see `flead logs jobmanager`"
            ) from None


def in_one_line(stacktrace: str) -> str:
    r"""What failed, and what it came from in the end.

    >>> in_one_line("A: no commit\n\tat x(X.java:1)\nCaused by: B: sent\nCaused by: C: unknown producer\n\t... 7 more")
    'A: no commit, caused by C: unknown producer'
    """
    what, *lines = stacktrace.splitlines()
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return ", caused by ".join([what, *causes[-1:]])


def _cause(operation: Mapping[str, Any]) -> str:
    failure = operation.get("failure-cause", {})
    return str(failure.get("stack-trace", failure)).splitlines()[0][:300]
