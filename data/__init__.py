"""Datasets: download, read, replay in event time, simulate.

A new file format is a class in `formats.py` and one entry in its `FORMATS`; the contract tests pick it up from there.
Nothing here keeps a whole file in memory. May import `flead` and `config` only.
"""
