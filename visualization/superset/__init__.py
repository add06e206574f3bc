"""Superset: its dashboards as files, its set-up as a service of a run, and what checks and exports them."""
