"""Prints how well anomalies are found: `python -m benchmarks.detection`; see `--help`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.detection import data, intel, nab
from benchmarks.detection.scored import COMPETITORS, Scorer, ours, outcomes
from benchmarks.machine import describe
from benchmarks.report import keep, table, write
from config.settings import PROJECT
from flead.metrics import detection, f1_at

LEARNING = PROJECT / "docs" / "learning.md"


def run_nab(folder: Path, *, quick: bool) -> tuple[dict[str, Any], str]:
    """The Numenta Anomaly Benchmark, beside the published scores on the same series."""
    del quick
    windows = nab.load_windows(folder)
    times, scores = {}, {}
    for name in _progress(list(windows), "NAB"):
        frame = data.series(folder / name)
        times[name], scores[name] = frame.times, ours(frame)
    total, threshold = nab.score(times, scores, windows)
    crossed = float(np.mean([nab.crossed(times, scores, windows, seed=seed) for seed in range(5)]))
    found = {"score": total, "threshold": threshold, "crossed_threshold": crossed, "series": len(windows)}
    rows = [("**FLEAD**", total), ("FLEAD, threshold chosen on other series (5 folds, 5 times)", crossed)]
    rows += [(f"{name} (published)", value) for name, value in nab.reference_scores(folder).items()]
    rows.sort(key=lambda row: -row[1])
    return found, table((f"NAB, {len(windows)} series", "standard profile"), rows)


def run_suthaharan(folder: Path, *, quick: bool) -> tuple[dict[str, Any], str]:
    """Labelled readings of a sensor network: by reading, threshold chosen on the other motes."""
    frames, labels = data.motes(folder / "single_hop.csv")
    truth = np.concatenate(labels)
    found, rows = {}, []
    for name, scorer in _scorers(quick=quick):
        scores = [scorer(frame) for frame in _progress(frames, f"Suthaharan, {name}")]
        all_of_it = detection(truth, np.concatenate(scores))
        f1 = _crossed_f1(labels, scores)
        found[name] = {"auroc": all_of_it.auroc, "auprc": all_of_it.auprc, "f1": all_of_it.f1, "f1_crossed": f1}
        found[name]["threshold"] = all_of_it.threshold
        rows.append((name, *(f"{x:.3f}" for x in (all_of_it.auroc, all_of_it.auprc, all_of_it.f1, f1))))
        for other in sorted(set(folder.glob("*.csv")) - {folder / "single_hop.csv"}):  # sets not seen while tuning
            unseen, unseen_labels = data.motes(other)
            values, truths = np.concatenate([scorer(frame) for frame in unseen]), np.concatenate(unseen_labels)
            judged = detection(truths, values)
            at = f1_at(truths, values, all_of_it.threshold)
            found[f"{name} on {other.stem}"] = {"auroc": judged.auroc, "auprc": judged.auprc, "f1_at_single_hop": at}
            rows.append((f"{name} on {other.stem}", *(f"{x:.3f}" for x in (judged.auroc, judged.auprc, judged.f1, at))))
    header = (f"Suthaharan, {len(truth):,} readings", "AUROC", "AUPRC", "best F1", "F1, threshold of the other motes")
    return found, table(header, rows)


def run_intel(folder: Path, *, quick: bool) -> tuple[dict[str, Any], str]:
    """Intel Lab with injected faults: by window of 20 readings, and by reading."""
    days = [frame for path in sorted(folder.glob("data_*.txt.gz")) for frame in data.intel_days(path)]
    if quick:
        days = days[::6]
    rng = np.random.default_rng(intel.SEED)
    faulty = [intel.inject(frame, rng) for frame in days]
    windows, rows_truth = np.concatenate([f.windows for f in faulty]), np.concatenate([f.rows for f in faulty])
    found, rows = {}, []
    for name, scorer in _scorers(quick=quick):
        scores = [scorer(f.frame) for f in _progress(faulty, f"Intel Lab, {name}")]
        largest = [s.reshape(-1, intel.WINDOW).max(axis=1) for s in scores]
        by_window = detection(windows > 0, np.concatenate(largest))
        by_row = detection(rows_truth > 0, np.concatenate(scores))
        f1 = _crossed_f1([f.windows > 0 for f in faulty], largest)
        kinds = {}
        for number, kind in enumerate(intel.KINDS, start=1):
            of_kind = (windows == number) | (windows == 0)
            kinds[kind] = detection(windows[of_kind] > 0, np.concatenate(largest)[of_kind]).auroc
        found[name] = {
            "auroc": by_window.auroc, "auprc": by_window.auprc, "f1": by_window.f1, "f1_crossed": f1,
            "by_reading": {"auroc": by_row.auroc, "auprc": by_row.auprc, "f1": by_row.f1}, "auroc_by_kind": kinds,
        }  # fmt: skip
        figures = (by_window.auroc, by_window.auprc, by_window.f1, f1, by_row.auroc, by_row.auprc, *kinds.values())
        rows.append((name, *(f"{x:.3f}" for x in figures)))
    header = (
        f"Intel Lab with faults, {len(windows):,} windows",
        "AUROC",
        "AUPRC",
        "best F1",
        "F1, other motes' threshold",
    )
    return found, table((*header, "AUROC by reading", "AUPRC by reading", *intel.KINDS), rows)


def run_alarms(folder: Path, *, quick: bool) -> tuple[dict[str, Any], str]:
    """Alarms on Intel Lab readings as they are, per device and day, at the default of one accepted."""
    days = [frame for path in sorted(folder.glob("data_*.txt.gz")) for frame in data.intel_days(path)]
    counts: dict[int, list[float]] = {}
    for frame in _progress(days[::6] if quick else days, "Intel Lab, alarms"):
        said, day = outcomes(frame), ((frame.times - frame.times[0]) // 86_400.0).astype(int)
        for number in np.unique(day):
            counts.setdefault(int(number), []).append(float(said.is_anomaly[day == number].sum()))
    rows = [(f"{number + 1}", float(np.mean(alarms)), float(np.median(alarms))) for number, alarms in counts.items()]
    found = {str(number): float(np.mean(alarms)) for number, alarms in counts.items()}
    return found, table(("Intel Lab as it is, day of a device", "alarms per device, mean", "median"), rows)


SETS: dict[str, tuple[str, Callable[..., tuple[dict[str, Any], str]]]] = {
    "nab": ("nab", run_nab),
    "suthaharan": ("suthaharan-wsn", run_suthaharan),
    "intel": ("intel-lab", run_intel),
    "alarms": ("intel-lab", run_alarms),
}


def _scorers(*, quick: bool) -> Iterable[tuple[str, Scorer]]:
    return [("**FLEAD**", ours), *(() if quick else COMPETITORS.items())]


def _crossed_f1(labels: list[Any], scores: list[Any]) -> float:
    """F1 of all devices, each half judged by the threshold that is best for the other half."""
    together: list[tuple[Any, Any]] = []
    for half in (0, 1):
        tuned = detection(np.concatenate(labels[1 - half :: 2]), np.concatenate(scores[1 - half :: 2]))
        own = np.concatenate(scores[half::2])
        together.append((np.concatenate(labels[half::2]), (own >= tuned.threshold).astype(float)))
    return f1_at(np.concatenate([t for t, _ in together]), np.concatenate([a for _, a in together]), 0.5)


def _progress(items: list[Any], title: str) -> Iterator[Any]:
    from rich.console import Console

    console = Console(stderr=True)
    yield from track(items, title.replace("*", ""), console=console, disable=not console.is_terminal, transient=True)


def main() -> None:
    """Run what is asked for, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("--only", choices=SETS, help="one of the sets")
    parser.add_argument("--quick", action="store_true", help="without competitors, and a sixth of the motes")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure there")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/learning.md")
    asked = parser.parse_args()
    if asked.write and (asked.only or asked.quick):
        parser.error("--write takes the whole run, without --only and --quick")
    home = data.folder()
    report: dict[str, Any] = {"machine": describe()}
    tables = []
    for name, (folder, run) in SETS.items():
        if asked.only in (None, name):
            report[name], text = run(home / folder, quick=asked.quick)
            tables.append(text)
            print(text, end="\n\n", flush=True)
    keep(asked.json, report)
    if asked.write:
        write(
            LEARNING,
            "detection",
            "\n\n".join(tables) + f"\n\n`python -m benchmarks.detection --write` on {describe()}.",
        )


if __name__ == "__main__":
    main()
