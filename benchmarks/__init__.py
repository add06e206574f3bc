"""Measures FLEAD on the machine at hand; `docs/performance.md` and `docs/learning.md` keep the figures.

Each module is a command, run from the root of the checkout on a machine that does nothing else:

- `python -m benchmarks.pipeline`: lag and latency of the whole pipeline at several rates (minutes)
- `python -m benchmarks.recovery`: seconds until each service is back after kill -9 (minutes)
- `python -m benchmarks.detection`: how well anomalies are found, beside competitors (minutes)
- `python -m benchmarks.forecasting`: what forecasts are worth, by method (two minutes)
- `python -m benchmarks.learner`: microseconds per reading of one learner (seconds)
- `python -m benchmarks.analytics`: the batch report over 2.3 million readings, beside Polars (minutes)
- `python -m benchmarks.streaming`: streaming analytics at 5,000 readings/s, with kills in between (minutes)
- `python -m benchmarks.console`, `benchmarks.dashboards`, `benchmarks.mart`: the pages and what they read (minutes)
- `python -m benchmarks.personalisation`: what each rule of adoption is worth (minutes)
- `python -m benchmarks.federation.strategies`: a round of 10,000 devices by each strategy, beside Flower (a minute)
- `python -m benchmarks.federation.ingest rest|kafka`: updates a second that the global server stores (seconds)
- `python -m benchmarks.federation.poisoning`: attacks, strategies and the defence (minutes)
- `python -m benchmarks.federation.privacy`: what privacy costs in accuracy, and secure sums in time (a minute)
- `python -m benchmarks.federation.fleet`: rounds of 1,000 to 100,000 simulated devices (a minute)
- `python -m benchmarks.picture`: draws docs/running.svg, a run on a terminal (two minutes)
- `python -m benchmarks.machine`: the line that says where the figures come from

`pipeline`, `recovery` and `picture` start servers on free ports and in a temporary folder, and stop them again, also on
Ctrl-C. Ratios between figures that stand side by side in one table count for more than the figures themselves, which
change with the machine and with what else it does.
"""
