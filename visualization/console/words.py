"""What the console says in sentences. Pure functions of a few values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from visualization.page import UNITS
from visualization.report_words import UNKNOWN, counted, duration, listed, whole

KINDS: Mapping[str, str] = {
    "residual": "far from what was expected",
    "level": "on another level than usual",
    "drift": "drifting away",
    "noise": "noisier than usual",
    "stuck": "stuck on one value",
    "missing": "no value",
    "pattern": "an unusual course",
    "unrest": "several sensors unusual at once",
    "detector": "found by a plug-in detector",
}
"""What each kind of anomaly means (`flead.scoring.KINDS`)."""

DOWN = ("fatal", "backoff", "restarting")
"""States of a service that is not at work when it should be."""
ENOUGH = 200
"""Readings that a version is judged on at least."""
POOLED = 5
"""So many versions, the newest, are judged together: one may have met an easy minute."""
NO_CHANGE = 0.05
"""A difference of skill that says nothing: by the hour of the day it moves by a few points."""
STILL_S, STALE_S = 10.0, 30.0
"""A stream without a prediction for so long stands still; a run that was silent for so long may be over, s."""


class Answer(NamedTuple):
    """One answer of the page's head: `good`, `watch`, `bad` or `unknown`."""

    level: str
    headline: str
    detail: str


def kind_in_words(kind: str | None) -> str:
    """What a kind of anomaly means.

    >>> kind_in_words("stuck"), kind_in_words("news"), kind_in_words(None)
    ('stuck on one value', 'news', 'unusual')
    """
    return KINDS.get(kind, kind) if kind else "unusual"


def value_in_words(sensor: str | None, value: float | None) -> str:
    """A value of a sensor, four figures of it, with its unit where that is known.

    >>> value_in_words("temperature", 29.0), value_in_words("rpm", 12345.6), value_in_words("light", -0.0007123)
    ('29 °C', '12,346', '-0.0007123 lx')
    """
    if value is None:
        return UNKNOWN
    value = round(value, 9) + 0.0  # what is left over from arithmetic is nothing
    text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    unit = UNITS.get(sensor or "")
    return f"{text} {unit}" if unit else text


def milliseconds(value: float) -> str:
    """A short time.

    >>> milliseconds(32.9), milliseconds(1234.0)
    ('33 ms', '1.23 s')
    """
    return f"{value:.0f} ms" if value < 1_000 else duration(value / 1_000)


def sentence(alert: Mapping[str, Any]) -> str:
    """An alert for people.

    >>> sentence({"kind": "residual", "sensor": "temperature", "observed": 29.0, "expected": 19.99})
    'temperature far from what was expected: 29 °C, expected 19.99 °C'
    >>> sentence({"kind": "unrest", "sensor": None, "observed": None, "expected": None})
    'several sensors unusual at once'
    """
    sensor, kind = alert.get("sensor"), alert.get("kind")
    observed, expected = (value_in_words(sensor, alert.get(name)) for name in ("observed", "expected"))
    about = what = kind_in_words(kind)
    if sensor:
        about = f"{what}, {sensor} most" if kind == "unrest" else f"{sensor}{':' * (kind == 'missing')} {what}"
    if observed == UNKNOWN:
        return about if expected == UNKNOWN else f"{about}, expected {expected}"
    return f"{about}: {observed}" + ("" if expected in (UNKNOWN, observed) else f", expected {expected}")


def about_devices(tally: Mapping[str, int], troubled: Sequence[str]) -> Answer:
    """Which devices are in trouble.

    Parameters
    ----------
    tally:
        devices in each state (`fleet.State`)
    troubled:
        those with most alarms

    >>> tally = {"alarm": 2, "noted": 1, "silent": 0, "learning": 0, "ok": 49}
    >>> about_devices(tally, ["mote-7", "mote-2", "mote-5"])[1:]
    ('2 of 52 devices need a look', 'mote-7, mote-2; 1 with a few anomalies')
    """
    total, alarm, noted, silent = sum(tally.values()), tally["alarm"], tally["noted"], tally["silent"]
    if not total:
        return Answer("unknown", "No devices yet", "They appear with their first reading.")
    if silent == total:
        return Answer("bad", "No device is sending", f"{counted(total, 'device')} fell silent: has the source ended?")
    others = [
        f"{whole(number)} {what}"
        for number, what in (
            (noted, "with a few anomalies"),
            (silent, "silent"),
            (tally["learning"], "still learning"),
        )
        if number
    ]
    if alarm:
        names = listed(troubled[:alarm], 4) if alarm <= len(troubled) else f"{', '.join(troubled[:4])} and others"
        return Answer("bad", f"{whole(alarm)} of {counted(total, 'device')} need a look", "; ".join([names, *others]))
    if silent:
        rest = "; ".join(other for other in others if not other.endswith("silent")) or "The others are well."
        return Answer("watch", f"{whole(silent)} of {counted(total, 'device')} silent", rest)
    if noted:
        return Answer("good", "No lasting trouble", f"{'; '.join(others)}: {listed(troubled, 4)}")
    return Answer(
        "good", f"All {counted(total, 'device')} are well", "; ".join(others) or "Nothing unusual in the last minutes."
    )


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def about_model(skills: Sequence[tuple[int, int, float | None]], rounds: int) -> Answer:
    """Whether the global model gets better: the skill of forecasts made with the newest versions, and with the first.

    Parameters
    ----------
    skills:
        version, readings, and how much better than "no change" its forecasts were on them; version 0 is the time
        before the first round

    >>> about_model([(0, 500, 0.02), (1, 500, 0.09), (2, 500, 0.15)], 2).detail
    'Forecasts are 12 % better than "no change" with versions 1 to 2, 2.0 % better before the first round.'
    """
    if not rounds:
        return Answer("unknown", "No global model yet", "It comes with the first round.")
    judged = [(version, count, skill) for version, count, skill in skills if count >= ENOUGH and skill is not None]
    if len(judged) < 2:
        return Answer(
            "unknown", "Too early to say", f"{counted(rounds, 'round')} made; two versions have to be compared."
        )
    (first, _, before), newest = judged[0], judged[1:][-POOLED:]
    now = sum(count * skill for _, count, skill in newest) / sum(count for _, count, _ in newest)
    last = f"versions {newest[0][0]} to {newest[-1][0]}" if len(newest) > 1 else f"version {newest[0][0]}"
    since = f"with version {first}" if first else "before the first round"
    detail = f'Forecasts are {_better(now)} than "no change" with {last}, {_better(before)} {since}.'
    if abs(now - before) <= NO_CHANGE:
        return Answer("good", "Holding its level", detail)
    return Answer("good", "Getting better", detail) if now > before else Answer("watch", "Getting worse", detail)


def _better(skill: float) -> str:
    percent = f"{100 * abs(skill):.{0 if abs(skill) > 0.0995 else 1}f} %"
    return f"{percent} {'better' if skill >= 0 else 'worse'}"


def about_pipeline(
    status: Mapping[str, Any] | None, *, kafka: str | None, stored: bool, newest: float | None, p99: float | None,
    now: float,
) -> Answer:  # fmt: skip
    """Whether the pipeline itself is well.

    Parameters
    ----------
    status:
        the run's last status; None where there is no run
    kafka:
        why Kafka cannot be read, None where it can
    stored:
        whether MongoDB answers
    newest:
        when the newest prediction was stored
    p99:
        from a reading sent to its prediction stored, ms
    """
    if kafka is not None:
        return Answer("bad", "Kafka does not answer", "Shown is what was known before; it goes on by itself.")
    if not stored:
        return Answer("bad", "MongoDB does not answer", "Rounds wait; the stream goes on.")
    trouble = [name for name, service in _services(status).items() if service.get("state") in DOWN]
    if trouble and not is_stale(status, now):
        return Answer(
            "bad", f"{listed(trouble, 3)} {'is' if len(trouble) == 1 else 'are'} down", "See the services below."
        )
    if newest is None:
        return Answer("unknown", "Nothing flows yet", "No prediction has come in the last half hour.")
    if now - newest > STILL_S:
        return Answer("watch", f"Nothing new for {duration(round(now - newest))}", "Has the source ended?")
    speed = f"99 of 100 readings are predicted within {milliseconds(p99)}" if p99 is not None else ""
    waiting = (status or {}).get("lag", {}).get("flead.readings")
    if p99 is not None and p99 > 5_000:
        return Answer("watch", "Running behind", _joined(speed, f"{whole(waiting)} readings wait" if waiting else ""))
    return Answer("good", "Running well", speed)


def _services(status: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (status or {}).get("services") or {}


def is_stale(status: Mapping[str, Any] | None, now: float) -> bool:
    """Whether a status is of a run that has ended or does not go on.

    >>> is_stale({"state": "running", "updated": "1970-01-01T00:00:00+00:00"}, 5.0)
    False
    """
    if status is None or status.get("state") == "stopped":
        return True
    try:
        return now - datetime.fromisoformat(status["updated"]).timestamp() > STALE_S
    except (KeyError, TypeError, ValueError):
        return True


BY_ITSELF = "rollout"
"""Who decided on a version where nobody did."""


def decision(stage: str | None, verdict: str | None, who: str | None) -> str:
    """What became of a version, why, and by whom; nothing where nothing was decided.

    >>> print(decision("stable", "their errors rose by 2 % against those of 18 others", "rollout"))
    by itself: its canaries' errors rose by 2 % against those of 18 others
    >>> decision("rolled_back", "rolled back by ada", "ada"), decision("rolled_back", None, None)
    ('rolled back by ada', 'a later round took its place')
    """
    if verdict is None:
        return "a later round took its place" if stage == "rolled_back" else ""
    if who == BY_ITSELF:
        return "by itself: " + verdict.replace("their errors", "its canaries' errors", 1)
    return verdict if who is None or verdict.endswith(f"by {who}") else f"{verdict} ({who})"


def waits_for(trial: Mapping[str, Any]) -> str:
    """What the verdict on a version waits for.

    >>> waits_for({"automatic": True, "verdict": "wait", "canaries": 1, "expected": 2, "why": ""})
    'more devices to report'
    >>> waits_for({"automatic": False, "verdict": "promote", "why": "their errors rose by 0 %"})
    'an operator; by itself it would be promoted'
    """
    would = {"promote": "promoted", "roll_back": "rolled back"}.get(trial["verdict"])
    if trial["automatic"]:
        return "the next look: within seconds" if would else "more devices to report"
    return f"an operator; by itself it would be {would}" if would else "an operator"


def about_rollout(trial: Mapping[str, Any] | None, newest: Mapping[str, Any] | None) -> str:
    """What goes on with the newest version, in a sentence; nothing where it is the stable one.

    >>> about_rollout({"version": 7, "expected": 2, "others": 18}, None)
    'Version 7 is on trial with 2 of 20 devices.'
    >>> about_rollout(None, {"version": 7, "stage": "rolled back", "decision": "rolled back by ada"})
    'Version 7 was taken back: rolled back by ada.'
    """
    if trial:
        total = counted(trial["expected"] + trial["others"], "device")
        return f"Version {trial['version']} is on trial with {whole(trial['expected'])} of {total}."
    if newest and newest["stage"] == "rolled back":
        return f"Version {newest['version']} was taken back: {newest['decision']}."
    return ""
