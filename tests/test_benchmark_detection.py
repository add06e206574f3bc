"""The measures of `benchmarks.detection`: the score of NAB, the injected faults, and what is written of them."""

from __future__ import annotations

import importlib.util
import os
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.detection import __main__ as command
from benchmarks.detection import data, intel, nab
from benchmarks.report import write
from data.frames import Frame
from flead.errors import BadDataset
from flead.metrics import detection, f1_at

PROJECT = Path(__file__).parent.parent
SHARED_SCORE = PROJECT / "../shared/tools/nab_score.py"
FOLDER = Path(os.environ.get("FLEAD_DATA", PROJECT / "../shared/data")) / "nab"

Scores = dict[str, NDArray[np.float64]]
Spans = dict[str, list[list[str]]]


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def fleet(series: int = 10, rows: int = 1_000) -> tuple[Scores, Spans]:
    """Times of some series, a reading each 300 s, and a window of 100 readings in each but the last."""
    times = {f"s{i}.csv": 1.4e9 + 300.0 * np.arange(rows) for i in range(series)}
    windows = {
        name: [[moment(own[300 + 40 * i]), moment(own[399 + 40 * i])]] for i, (name, own) in enumerate(times.items())
    }
    return times, {**windows, f"s{series - 1}.csv": []}


def alarms_at_the_start_of_windows(times: Scores, windows: Spans) -> Scores:
    starts = {name: [nab._seconds(first) for first, _ in spans] for name, spans in windows.items()}
    return {name: np.isin(own, starts[name]).astype(float) for name, own in times.items()}


@pytest.fixture(scope="module")
def shared() -> ModuleType:
    if not SHARED_SCORE.exists():
        pytest.skip(f"needs {SHARED_SCORE}, the score that detectors of this project are judged by")
    spec = importlib.util.spec_from_file_location("nab_score", SHARED_SCORE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestNab:
    @pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs {FOLDER}; name its folder's folder in FLEAD_DATA")
    @pytest.mark.parametrize("seed", [0, 1])
    def test_the_score_is_the_shared_one(self, seed: int, shared: ModuleType, tmp_path: Path) -> None:
        windows, rng = nab.load_windows(FOLDER), np.random.default_rng(seed)
        times = {name: data.series(FOLDER / name).times for name in windows}
        # Of the second seed, few and coarse values: many alarms share one threshold.
        scores = {name: rng.random(len(own)) ** 3 for name, own in times.items()}
        if seed:
            scores = {name: np.round(own, 2) for name, own in scores.items()}
        for name, moments in times.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            rows = (f"{moment(t)},{score!r}" for t, score in zip(moments, scores[name].tolist(), strict=True))
            path.write_text("\n".join(("timestamp,anomaly_score", *rows)))
        total, threshold = shared.nab(tmp_path, windows)
        own, own_threshold = nab.score(times, scores, windows)
        assert own == pytest.approx(total, abs=1e-9)
        assert own_threshold == threshold

    def test_a_perfect_detector_scores_100_and_a_silent_one_0(self) -> None:
        times, windows = fleet()
        perfect = alarms_at_the_start_of_windows(times, windows)
        total, threshold = nab.score(times, perfect, windows)
        assert total == pytest.approx(100.0)
        assert threshold == 1.0
        silent = {name: np.zeros(len(own)) for name, own in times.items()}
        assert nab.score(times, silent, windows)[0] == pytest.approx(0.0)

    def test_a_false_alarm_costs_and_one_during_the_probation_does_not(self) -> None:
        times, windows = fleet()
        scores = alarms_at_the_start_of_windows(times, windows)
        scores["s0.csv"][:150] = 1.0
        assert nab.score(times, scores, windows)[0] == pytest.approx(100.0)
        scores["s9.csv"][500] = 1.0
        assert nab.score(times, scores, windows)[0] == pytest.approx(100.0 - 50.0 * nab.FALSE_ALARM / 9)

    @pytest.mark.parametrize("seed", range(3))
    def test_crossed_is_the_plain_score_where_one_threshold_is_best_for_all(self, seed: int) -> None:
        times, windows = fleet()
        scores, rng = alarms_at_the_start_of_windows(times, windows), np.random.default_rng(seed)
        for own in scores.values():
            own[rng.integers(0, len(own), 3)] = 1.0
        total, threshold = nab.score(times, scores, windows)
        assert threshold == 1.0
        assert total < 100.0
        assert nab.crossed(times, scores, windows, seed=seed) == pytest.approx(total)

    def test_crossed_never_sees_the_series_that_it_judges(self) -> None:
        times, windows = fleet(series=11)
        scores = alarms_at_the_start_of_windows(times, windows)
        scores["s0.csv"] *= 0.5  # found at 0.5 only, where every other series raises false alarms
        for name in list(windows)[1:]:
            scores[name][600:] = np.maximum(scores[name][600:], 0.6)
        assert nab.crossed(times, scores, windows) == pytest.approx(90.0)

    def test_reads_the_first_column_of_published_figures(self, tmp_path: Path) -> None:
        assert nab.reference_scores(tmp_path) == {}
        (tmp_path / "REFERENCE.md").write_text(
            "# Scores\n\nText | 5.0 | 6.0 |\n\n| detector | these 29 series | all 58 series |\n|---|---|---|\n"
            "| ARTime (adaptive resonance) | 75.1 | 74.9 |\n| random | 15.0 | 17.7 (one run) |\n| none | - | 1.0 |\n"
        )
        assert nab.reference_scores(tmp_path) == {"ARTime (adaptive resonance)": 75.1, "random": 15.0}


def mote(rows: int = 30_007) -> Frame:
    """Two sensors that never repeat a value, and one with too few values to be faulty."""
    rng = np.random.default_rng(3)
    values = np.column_stack((rng.normal(20.0, 2.0, rows), rng.normal(40.0, 5.0, rows), np.full(rows, np.nan)))
    values[:100, 2] = 1.0
    return Frame("mote-1", ("humidity", "temperature", "voltage"), 31.0 * np.arange(rows), values, np.arange(rows))


class TestFaults:
    def test_are_the_same_for_a_seed(self) -> None:
        one, two, other = (intel.inject(mote(), np.random.default_rng(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.frame.values, two.frame.values)
        np.testing.assert_array_equal(one.rows, two.rows)
        assert (one.rows != other.rows).any()

    def test_touch_only_what_they_say(self) -> None:
        given, found = mote(), intel.inject(mote(), np.random.default_rng(1))
        length = len(found.rows)
        assert length == 30_000
        assert len(found.frame.times) == len(found.frame.records) == length
        np.testing.assert_array_equal(found.frame.times, given.times[:length])
        same = np.isclose(found.frame.values, given.values[:length], rtol=0.0, atol=0.0, equal_nan=True)
        assert same[:, 2].all()
        assert not (~same).any(axis=1)[found.rows == 0].any()
        assert not (~same).all(axis=1).any()  # one sensor at a time
        by_window = found.rows.reshape(-1, intel.WINDOW)
        np.testing.assert_array_equal(by_window.max(axis=1), found.windows)
        changed = (~same).any(axis=1).reshape(-1, intel.WINDOW).sum(axis=1)
        for kind, expected in zip(intel.KINDS, (1, 19, 19, 20, 5), strict=True):
            windows = found.windows == 1 + intel.KINDS.index(kind)
            assert set(changed[windows]) == {expected}, kind

    def test_do_what_their_kind_says(self) -> None:
        given, found = mote(), intel.inject(mote(), np.random.default_rng(1))
        values, before = found.frame.values, given.values[: len(found.rows)]
        sd = np.nanstd(before, axis=0)
        for window in np.flatnonzero(found.windows):
            rows = slice(window * intel.WINDOW, (window + 1) * intel.WINDOW)
            s = int(np.argmax((values[rows, :2] != before[rows, :2]).any(axis=0)))
            own, off = values[rows, s], (values - before)[rows, s] / sd[s]
            kind = intel.KINDS[found.windows[window] - 1]
            if kind == "spike":
                assert np.abs(off).max() == pytest.approx(2.0)
            elif kind == "stuck":
                assert set(own) == {before[rows, s][0]}
            elif kind == "ramp":
                np.testing.assert_allclose(np.abs(off), np.linspace(0.0, 2.0, intel.WINDOW), atol=1e-9)
            elif kind == "noise":
                assert 0.2 < float(off.std()) < 0.9
            else:
                assert (own == 0.0).sum() == 5

    def test_are_each_in_one_window_of_a_hundred(self) -> None:
        windows = intel.inject(mote(), np.random.default_rng(1)).windows
        for number in range(1, 1 + len(intel.KINDS)):
            assert np.mean(windows == number) == pytest.approx(intel.SHARE, rel=0.05)

    @pytest.mark.parametrize("rows", [0, 19, 90])
    def test_leave_a_mote_alone_that_has_next_to_no_values(self, rows: int) -> None:
        found = intel.inject(short(rows), np.random.default_rng(1))
        assert not found.rows.any()
        assert len(found.windows) == rows // intel.WINDOW


def short(rows: int) -> Frame:
    return Frame("mote-2", ("light",), 31.0 * np.arange(rows), np.ones((rows, 1)), np.arange(rows))


def test_a_perfect_detector_of_faults_scores_1_and_a_silent_one_0() -> None:
    truths = [intel.inject(mote(), np.random.default_rng(seed)).windows > 0 for seed in range(4)]
    perfect = [truth.astype(float) for truth in truths]
    together = detection(np.concatenate(truths), np.concatenate(perfect))
    assert (together.auroc, together.auprc, together.f1) == (1.0, 1.0, 1.0)
    assert command._crossed_f1(truths, perfect) == 1.0
    silent = np.zeros(len(np.concatenate(truths)))
    assert f1_at(np.concatenate(truths), silent, 0.5) == 0.0
    assert detection(np.concatenate(truths), silent).auroc == 0.5


class TestWriting:
    def test_puts_the_text_between_the_marks(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter <!-- b --><!-- /b -->\n")
        for text in ("first", "second"):
            write(page, "a", text)
            expected = f"before\n<!-- a -->\n\n{text}\n\n<!-- /a -->\nafter <!-- b --><!-- /b -->\n"
            assert page.read_text() == expected

    @pytest.mark.parametrize("text", ["", "<!-- a -->", "<!-- /a -->", "<!-- /a --> <!-- a -->"])
    def test_refuses_a_document_without_them(self, text: str, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(text)
        with pytest.raises(SystemExit, match="has no <!-- a -->"):
            write(page, "a", "new")
        assert page.read_text() == text

    @pytest.mark.parametrize("part", [("--only", "nab"), ("--quick",)])
    def test_takes_the_whole_run_only(
        self, part: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("sys.argv", ["detection", "--write", *part])
        with pytest.raises(SystemExit):
            command.main()
        assert "--write takes the whole run" in capsys.readouterr().err


def test_a_folder_without_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEAD_DATA", str(tmp_path / "none"))
    with pytest.raises(BadDataset, match="name the one that holds the public data in FLEAD_DATA"):
        data.folder()
