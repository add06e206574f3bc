"""What people look at.

Now: `plots`, the pictures of `flead evaluate` and `flead detect`. The dashboards step adds the SQL mart that follows
MongoDB, Superset, and the live console. May import `flead`, `config`, `data`, `kafka` and `storage`.
"""
