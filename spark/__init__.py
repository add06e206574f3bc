"""Batch reports and streaming analytics on Spark.

`session` starts Spark, here or on a cluster. `history` and `batch` look at all there is, day by day; `streaming` and
`stream_*` keep up with what flows. The arithmetic is in `flead/` (`flead.analysis`, `flead.spatial`), what is written
goes through `storage/`. Workers get a zip of this folder and of all that it may import: `flead`, `config`, `data`,
`kafka` and `storage`.
"""
