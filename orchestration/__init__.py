"""What starts, supervises and stops everything, and the `flead` command.

The only folder that knows all others, and that none imports. Set-up of a fresh machine is in `setup/`; what a service
is, in `services.py`; a run from start to end, in `up.py`; looking at it and judging it, in `watching.py`; what is known
of it, in `status.py`; the command, in `cli.py` and the `cli_*.py` beside it.
"""
