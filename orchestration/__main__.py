"""`python -m orchestration` is the `flead` command."""

from orchestration.cli import main

main()
