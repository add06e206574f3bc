"""Settings: `project_config.yaml`, the template `environment.env`, and the one typed module that reads them.

A new setting goes into `settings.py` with its unit and description, and into the YAML with its default.
May import `flead` only.
"""
