"""What people look at.

`console/`: the live console, mounted on the global server. `mart/`: the SQL copy of MongoDB that dashboards read.
`superset/`: Superset and its dashboards. `plots`: the pictures of `flead evaluate` and `flead detect`. `report` and
`report_*`: the page and PDF of `flead analyze batch`, a section in each room, all on `page`. `browser`: where Chromium
is. `screenshots`: the README's pictures. May import `flead`, `config`, `data`, `kafka` and `storage`.
"""
