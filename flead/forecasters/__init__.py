"""FLEAD's own forecasters, one a file, declared in `flead.plugins.BUILT_IN`.

Each keeps the contract of `flead.plugins.Forecaster`; a new one is a file here and a line there, and
`tests/test_plugins.py` then checks it. Imports `flead` only.
"""
