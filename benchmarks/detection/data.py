"""Where the public data lies, and its readings as frames."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from config.settings import PROJECT
from data.frames import Frame, frames_of
from data.plausible import PlausibleOnly, ranges_of
from data.sources import open_dataset
from flead.errors import BadDataset


def folder() -> Path:
    """The folder that FLEAD_DATA names, or `shared/data` beside the checkout.

    Raises
    ------
    BadDataset
        where there is none
    """
    path = Path(os.environ.get("FLEAD_DATA") or PROJECT.parent / "shared" / "data")
    if not path.is_dir():
        raise BadDataset(f"{path} is no folder: name the one that holds the public data in FLEAD_DATA")
    return path


def series(path: Path) -> Frame:
    """One CSV of one device."""
    return frames_of(open_dataset(path).readings())[0]


def intel_days(path: Path) -> list[Frame]:
    """Intel Lab readings by mote; what no such sensor can measure counts as missing."""
    dataset = open_dataset(path)
    return frames_of(PlausibleOnly(ranges_of(dataset.format)).of(dataset.readings()))


def motes(path: Path) -> tuple[list[Frame], list[np.ndarray[tuple[int], np.dtype[np.bool_]]]]:
    """A file of the Suthaharan set, a frame and its labels for each mote; a reading each 5 s."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    frames, labels = [], []
    for mote in sorted({row["mote_id"] for row in rows}, key=int):
        own = [row for row in rows if row["mote_id"] == mote]
        values = np.array([[float(row["humidity"]), float(row["temperature"])] for row in own])
        times = 1.2e9 + 5.0 * np.arange(len(own))
        frames.append(Frame(f"mote-{mote}", ("humidity", "temperature"), times, values, np.arange(len(own))))
        labels.append(np.array([int(row["label"]) > 0 for row in own]))
    return frames, labels
