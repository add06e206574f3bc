"""How well anomalies are found, on public data, beside competitors: `python -m benchmarks.detection`.

- `nab`: the Numenta Anomaly Benchmark's series and its score
- `intel`: Intel Lab readings with injected faults of each kind
- `data`: where the readings lie, with those of a labelled wireless sensor network (Suthaharan)
- `scored`: FLEAD's scores, and those of other detectors on the same readings
- `__main__`: the tables, and `docs/learning.md` with it (`--write`)

Everything runs through `flead.learner.DeviceLearner` with its default configuration, as `flead detect` does.
"""
