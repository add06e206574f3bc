"""How well anomalies are found, on public data, beside competitors: `python -m benchmarks.detection`.

- `nab`: the Numenta Anomaly Benchmark's series and its score
- `suthaharan`: labelled humidity and temperature of a wireless sensor network
- `intel`: Intel Lab readings with injected faults of each kind
- `competitors`: other detectors on the same readings
- `__main__`: the table, and `docs/learning.md` with it (`--write`)

Everything runs through `flead.learner.DeviceLearner` with its default configuration, as `flead detect` does.
"""
