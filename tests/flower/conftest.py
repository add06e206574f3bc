"""Flower is in an environment of its own."""

collect_ignore = ["make.py"]
