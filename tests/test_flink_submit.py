"""What the cluster gets is the same for the same code, and a job goes on from the newest complete restore point."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from config.settings import PROJECT
from flink.submit import JobKeeper, file_uri, newest_local_restore_point, package


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small checkout."""
    for name in (
        "flead/__init__.py",
        "flead/learner.py",
        "flead/deep/er.py",
        "flead/__pycache__/learner.cpython-311.pyc",
        "flead/notes.txt",
        "flink/job.py",
        "config/settings.py",
        "config/environment.env",
        "run/flead/secret.py",
        "main.py",
    ):
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    return tmp_path / "checkout"


class TestThePackage:
    def test_holds_exactly_the_code_of_flead_and_flink(self, project: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(package(project, tmp_path / "new" / "job.zip")) as archive:
            assert archive.namelist() == [
                "flead/__init__.py",
                "flead/deep/er.py",
                "flead/learner.py",
                "flink/job.py",
            ]
            assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}
            assert archive.read("flink/job.py") == b"# flink/job.py\n"

    def test_is_the_same_for_the_same_code(self, project: Path, tmp_path: Path) -> None:
        one = package(project, tmp_path / "one.zip").read_bytes()
        for path in project.rglob("*.py"):
            os.utime(path, (0, 0))
            path.chmod(0o600)
        assert package(project, tmp_path / "other.zip").read_bytes() == one

    def test_is_another_for_other_code(self, project: Path, tmp_path: Path) -> None:
        one = package(project, tmp_path / "job.zip").read_bytes()
        (project / "flead" / "learner.py").write_text("changed\n")
        assert package(project, tmp_path / "job.zip").read_bytes() != one

    def test_of_this_checkout_holds_what_the_workers_import(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(package(PROJECT, tmp_path / "job.zip")) as archive:
            names = archive.namelist()
        assert {name.partition("/")[0] for name in names} == {"flead", "flink"}
        assert {"flead/__init__.py", "flead/learner.py", "flink/__init__.py", "flink/job.py", "flink/functions.py"} <= {
            *names
        }


def point(folder: Path, age_s: int, *, complete: bool = True) -> str:
    """A checkpoint of this age; an unfinished one has no `_metadata`. Returns its URI."""
    folder.mkdir(parents=True)
    (folder / "state").touch()
    if complete:
        (folder / "_metadata").touch()
        os.utime(folder / "_metadata", (1_700_000_000 - age_s,) * 2)
    return file_uri(folder)


class TestTheNewestRestorePoint:
    def test_is_none_where_there_is_none(self, tmp_path: Path) -> None:
        assert newest_local_restore_point() is None
        assert newest_local_restore_point(tmp_path, tmp_path / "nowhere") is None

    def test_is_the_newest_by_time_and_not_by_name(self, tmp_path: Path) -> None:
        point(tmp_path / "job-b" / "chk-9", age_s=60)
        newest = point(tmp_path / "job-a" / "chk-10", age_s=30)
        point(tmp_path / "job-c" / "chk-1", age_s=90)
        assert newest_local_restore_point(tmp_path) == newest

    def test_is_never_an_unfinished_one(self, tmp_path: Path) -> None:
        complete = point(tmp_path / "job" / "chk-1", age_s=60)
        point(tmp_path / "job" / "chk-2", age_s=0, complete=False)
        assert newest_local_restore_point(tmp_path) == complete

    def test_may_be_a_checkpoint_or_a_savepoint(self, tmp_path: Path) -> None:
        checkpoints, savepoints = tmp_path / "checkpoints", tmp_path / "savepoints"
        point(checkpoints / "job" / "chk-7", age_s=10)
        savepoint = point(savepoints / "savepoint-1", age_s=5)
        assert newest_local_restore_point(checkpoints, savepoints) == savepoint
        checkpoint = point(checkpoints / "other" / "chk-1", age_s=1)
        assert newest_local_restore_point(checkpoints, savepoints) == checkpoint

    def test_is_a_uri_whatever_the_folder_is_called(self, tmp_path: Path) -> None:
        # Flink takes a path as it stands: what is escaped it would look for under its escaped name.
        assert point(tmp_path / "my run #1" / "chk-1", age_s=0).endswith("/my run #1/chk-1")
        assert newest_local_restore_point(tmp_path) == file_uri(tmp_path / "my run #1" / "chk-1")


class TestTheKeeper:
    def keeper(self, checkpoints: str, savepoints: str, remembered: Path) -> JobKeeper:
        return JobKeeper("http://127.0.0.1:1", lambda _: None, checkpoints, savepoints, remembered, lambda: True)

    def test_goes_on_from_the_newest_local_point(self, tmp_path: Path) -> None:
        folder = tmp_path / "my run"
        (tmp_path / "remembered").write_text("s3://elsewhere/chk-1")
        point(folder / "checkpoints" / "chk-1", age_s=9)
        newest = point(folder / "savepoints" / "savepoint-1", age_s=3)
        uris = [file_uri(folder / name) for name in ("checkpoints", "savepoints")]
        assert self.keeper(uris[0], uris[1], tmp_path / "remembered").restore_point() == newest

    def test_goes_on_from_the_remembered_one_where_checkpoints_lie_elsewhere(self, tmp_path: Path) -> None:
        keeper = self.keeper("s3://bucket/checkpoints", "s3://bucket/savepoints", tmp_path / "remembered")
        assert keeper.restore_point() is None
        (tmp_path / "remembered").write_text("s3://bucket/checkpoints/chk-7\n")
        assert keeper.restore_point() == "s3://bucket/checkpoints/chk-7"

    def test_begins_anew_without_one(self, tmp_path: Path) -> None:
        uri = file_uri(tmp_path)
        assert self.keeper(uri, uri, tmp_path / "remembered").restore_point() is None
