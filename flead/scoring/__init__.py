"""The built-in anomaly scores: how surprising a reading is by the device's own history. Constant in time and memory.

Each sensor has a few statistics of what can go wrong with it. Each becomes a surprise, about -log10 of how often the
statistic was this large before, so that all speak one unit and nothing is set per dataset; the largest speaks for the
device. Three kinds of evidence are told apart:

- novelty: a signal leaves the range it had in the last epochs. It marks the onset of an event, once.
- changes: a jump, noise, a ramp, a value that repeats or does not come, in units of the sensor's typical change,
  against the largest of earlier blocks of readings. The return from such an event is none.
- unrest: all sensors of a device change more than they usually do while their levels are off. This lasts as long as
  the event, and needs two sensors that agree.

With a single sensor nothing can agree: there only novelty alarms, with a refractory period, and what persists stays
below, unless it is overwhelming. A reading is scored first and then learnt, and what is learnt from it is cut short,
so that an anomaly does not become normal by happening.

`novelty`, `changes`, `failures` and `unrest` find the statistics, `calibration` makes surprises of them, `verdict`
joins these to one. What is kept lies where `layout` says: changing it is a state migration.
"""

from flead.scoring.layout import EXTRA, Scores, scratch_size, size, views
from flead.scoring.verdict import BY_SENSOR, HIGHEST, JOINT, KIND, KINDS, SENSOR, SURPRISE, score

__all__ = [
    "BY_SENSOR", "EXTRA", "HIGHEST", "JOINT", "KIND", "KINDS", "SENSOR", "SURPRISE", "Scores", "score", "scratch_size",
    "size", "views",
]  # fmt: skip
