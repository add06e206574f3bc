"""What runs in Superset's environment cannot be imported in the pipeline's: pytest does not look for doctests here."""

collect_ignore_glob = ["*.py"]
