"""What starts, supervises and stops everything, and the `flead` command.

The only folder that knows all others, and that none imports. Set-up of a fresh machine is in `setup/`; what a service
is, in `services.py`; a run from start to verdict, in `up.py`.
"""
