"""Which values of a format's sensors can be true: what lies outside is treated as missing by offline work.

Only formats whose sensors are known have ranges; nothing is assumed of anybody else's `temperature`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from data.formats import Format, IntelLab, Rejected
from flead.messages import Reading

INTEL_LAB: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (-10.0, 60.0),
    "humidity": (0.0, 100.0),
    "voltage": (1.8, 3.2),
    "light": (0.0, 2_000.0),
}
"""°C, % relative humidity, V, lux. A mote whose battery falls below about 2.2 V reports 122 °C and negative humidity;
full sun is above what its light sensor can say, so 2,000 lux is the end of its scale."""


def ranges_of(format_: Format) -> Mapping[str, tuple[float, float]]:
    """Lowest and highest plausible value by sensor; empty for a format whose sensors are anybody's.

    >>> ranges_of(IntelLab())["voltage"]
    (1.8, 3.2)
    """
    return INTEL_LAB if isinstance(format_, IntelLab) else {}


@dataclass
class PlausibleOnly:
    """Takes the values outside their ranges out of readings, and counts them by sensor.

    >>> from data.fields import utc
    >>> hot = Reading(device_id="m", timestamp=utc("2024-01-01"), sensors={"temperature": 122.2, "voltage": 2.1})
    >>> kept = PlausibleOnly(INTEL_LAB)
    >>> [record.sensors for record in kept.of([hot])], kept.removed
    ([{'temperature': None, 'voltage': 2.1}], {'temperature': 1})
    """

    ranges: Mapping[str, tuple[float, float]]
    removed: dict[str, int] = field(default_factory=dict)

    def of(self, records: Iterable[Reading | Rejected]) -> Iterator[Reading | Rejected]:
        """The same records, in their order; readings are new objects where something was taken out."""
        ranges = self.ranges
        for record in records:
            if ranges and isinstance(record, Reading):
                wrong = [
                    name
                    for name, value in record.sensors.items()
                    if value is not None and name in ranges and not ranges[name][0] <= value <= ranges[name][1]
                ]
                if wrong:
                    for name in wrong:
                        self.removed[name] = self.removed.get(name, 0) + 1
                    sensors = {name: None if name in wrong else value for name, value in record.sensors.items()}
                    yield record.model_copy(update={"sensors": sensors})
                    continue
            yield record
