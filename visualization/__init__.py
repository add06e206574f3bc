"""The SQL mart that follows MongoDB, Superset, and the live console.

Empty until the dashboards step. May import `flead`, `config`, `data`, `kafka` and `storage`.
"""
