"""Batch reports and streaming analytics on Spark.

Empty until the analytics step. Its workers get a zip of `flead/` and this folder; may import `flead`, `config`,
`data`, `kafka` and `storage`.
"""
