"""What people look at.

`plots`: the pictures of `flead evaluate` and `flead detect`. `report` and `report_*`: the page and PDF of
`flead analyze batch`, a section in each room, all on `page`. The dashboards step adds the SQL mart that follows
MongoDB, Superset, and the live console. May import `flead`, `config`, `data`, `kafka` and `storage`.
"""
