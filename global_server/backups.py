"""Stable global models as signed files in the run folder: what is left to go on from where a database is lost.

A file is named by when it was written, counted up, and by its version: a version that is stable again because a later
one was taken back is the newest, whatever its number.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from flead.errors import BadModel, FleadError, NotThere
from flead.messages import GlobalModel

FOLDER = "server/models"
"""In the run folder."""


class Backups:
    """The models of each cohort that were stable last, a file each.

    Parameters
    ----------
    keep:
        files of each cohort; 0: none are written

    >>> import tempfile
    >>> Backups(Path(tempfile.mkdtemp()), keep=3).newest("light")
    Traceback (most recent call last):
    flead.errors.NotThere: there is no backup of cohort 'light' in this run folder
    """

    def __init__(self, run_dir: Path, keep: int) -> None:
        self._folder = run_dir / FOLDER
        self._keep = keep

    def write(self, model: GlobalModel) -> None:
        """Write a model, whole or not at all, and remove the oldest beyond what is kept; raises `FleadError`.

        The one that was written last is written over where it is the same version: a restart publishes it again.
        """
        if not self._keep:
            return
        folder = self._of(model.cohort)
        number, version = _numbers(_newest_in(folder))
        path = folder / f"{number + (version != model.version):09d}-{model.version}.json"
        temporary = path.with_suffix(".part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(model.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            for old in sorted(folder.glob("*.json"))[: -self._keep]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise FleadError(f"{path} cannot be written: {error.strerror}") from None

    def newest(self, cohort: str) -> Path:
        """The backup of a cohort that was written last; raises `NotThere`."""
        found = _newest_in(self._of(cohort))
        if found is None:
            raise NotThere(f"there is no backup of cohort {cohort!r} in this run folder")
        return found

    def cohorts(self) -> list[str]:
        """The cohorts of which there are backups."""
        newest = map(_newest_in, self._folder.glob("*"))
        return sorted(read_backup(path).cohort for path in newest if path)

    def _of(self, cohort: str) -> Path:
        """A cohort's folder: its name as far as a folder can have it, and what tells it from others."""
        plain = re.sub(r"[^\w+-]", "_", cohort)[:60]
        return self._folder / f"{plain}-{hashlib.sha256(cohort.encode()).hexdigest()[:8]}"


def _newest_in(folder: Path) -> Path | None:
    """The file that was written last; None where there is none."""
    return max(folder.glob("*.json"), default=None)


def _numbers(path: Path | None) -> tuple[int, int]:
    """The how manieth file it is, and of which version.

    >>> _numbers(Path("000000012-7.json")), _numbers(Path("000000007.json")), _numbers(None)
    ((12, 7), (7, 7), (0, 0))
    """
    number, _, version = (path.stem if path else "0").partition("-")
    return int(number), int(version or number)  # files of earlier releases were named by version alone


def read_backup(path: Path) -> GlobalModel:
    """Read a backup; raises `BadModel` or `NotThere`."""
    try:
        return GlobalModel.from_json(path.read_bytes())
    except OSError as error:
        raise NotThere(f"{path} cannot be read: {error.strerror}") from None
    except BadModel as error:
        raise BadModel(f"{path} is no backup of a global model: {error.detail}") from None
