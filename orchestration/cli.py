"""The `flead` command: one function per subcommand, each no more than options, a call and what to print.

The commands that start, stop and show a run are here. Each other group of commands is a `typer.Typer` in a module of
its own, joined below: `cli_services.py` (what a run consists of), `cli_learning.py` (what learns from files),
`cli_storage.py` (backup, restore, reader), `cli_data.py` (`flead data`), `cli_analyze.py` (`flead analyze`),
`cli_federation.py` (large fleets), `cli_models.py` (`flead models`, `flead quarantine`, `flead rules`),
`cli_access.py` (`flead users`, `flead keys`).
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from flead.errors import BadConfiguration, FleadError
from orchestration import (
    cli_access,
    cli_analyze,
    cli_dashboards,
    cli_data,
    cli_federation,
    cli_learning,
    cli_mart,
    cli_models,
    cli_services,
    cli_storage,
)
from orchestration.cli_common import (
    Data,
    Devices,
    ForS,
    Json,
    Loop,
    Rate,
    RunDir,
    bar,
    err,
    find_data,
    out,
    say,
    settings_for,
)

NOT_RUNNING = 3
_OF_THE_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
"""What is wrong with a folder and not with us, wherever it is found."""
DOWN_LIMIT_S = 300.0
"""What is on its way may take 45 s twice, a savepoint 75 s, and each service its time to stop."""

app = typer.Typer(
    help="Federated learning on sensor streams: a model per device, merged into a global model that flows back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_services.app)
app.add_typer(cli_learning.app)
app.add_typer(cli_federation.app)
app.add_typer(cli_storage.app)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_analyze.app, name="analyze")
app.add_typer(cli_dashboards.app, name="dashboards")
app.add_typer(cli_mart.app, name="mart")
app.add_typer(cli_models.models, name="models")
app.add_typer(cli_models.quarantine, name="quarantine")
app.add_typer(cli_models.rules, name="rules")
app.add_typer(cli_access.users, name="users")
app.add_typer(cli_access.keys, name="keys")


def main() -> None:
    """Run the command; what goes wrong on purpose is one line, not a stack trace."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        app()
    except FleadError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in _OF_THE_PLACE or error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}: name another place, or ask who owns this one", 1)


def _fail(why: str, code: int) -> NoReturn:
    err.print(Text.assemble(("flead:", "bold red"), f" {why}"), soft_wrap=True)
    sys.exit(code)


@app.command()
def up(
    data: Data = "simulated",
    rate: Rate = 1_000.0,
    for_s: ForS = None,
    loop: Loop = True,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            help="Leave out: analytics, archive (then nothing is stored), dashboards, producer. Repeatable.",
        ),
    ] = None,
    devices: Devices = 50,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """Start everything, watch it live, and stop all of it again on Ctrl-C or after --for seconds.

    It exits 0 only if the run was well: nothing lost, every update accepted, rounds made, all stored.
    """
    from rich.live import Live

    from orchestration.display import one_line, picture, verdict
    from orchestration.services import OPTIONAL, flead_command
    from orchestration.status import Status
    from orchestration.up import Interrupted, Options, Run

    left_out = frozenset(without or ())
    if left_out - set(OPTIONAL):
        raise BadConfiguration(
            f"--without knows {', '.join(OPTIONAL)}, not {', '.join(sorted(left_out - set(OPTIONAL)))}"
        )
    settings, producer = settings_for(run_dir), None
    if "producer" in left_out:
        say(f"the readings are yours to send, to flead.readings at {settings.kafka.servers}")
    else:
        source = find_data(data, settings)
        if source == "simulated":
            say(f"the readings come from the simulator ({devices} devices); --data names a file of real ones")
        producer = flead_command("produce", "--data", source, "--rate", str(rate), "--devices", str(devices))
        producer += ["--loop" if loop else "--once", "--progress-file", str(settings.run_dir / "produce.json")]
        producer += ["--for", str(for_s)] if for_s is not None else []
    live = Live(console=err, refresh_per_second=2, transient=True)
    interactive, next_line_s = err.is_terminal, 10.0

    def show(status: Status) -> None:
        nonlocal next_line_s
        if interactive:
            live.update(picture(status))
        elif status.timings_s["total"] >= next_line_s:
            next_line_s += 10.0
            say(one_line(status))

    run = Run(
        settings,
        Options(producer, for_s, left_out),
        show,
        say,
        say if interactive else lambda _: None,
    )
    try:
        if interactive:
            with live:
                status = run.execute()
        else:
            status = run.execute()
    except Interrupted:
        say("stopped")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(status.to_json())
    else:
        out.print(picture(status))
        out.print(verdict(status))
    raise typer.Exit(0 if all(check["ok"] for check in status.checks.values()) else 1)


@app.command()
def down(run_dir: RunDir = None) -> None:
    """Stop the run in a run folder, in order."""
    from orchestration.status import running_pid

    settings = settings_for(run_dir)
    pid = running_pid(settings.run_dir)
    if pid is None:
        say(f"nothing runs in {settings.run_dir}")
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:  # it ended just now
        pass
    except PermissionError:
        raise FleadError(f"process {pid} is another user's: only they can stop it") from None
    deadline = time.monotonic() + DOWN_LIMIT_S
    with bar("stopping"):
        while running_pid(settings.run_dir) is not None:
            if time.monotonic() > deadline:
                raise FleadError(f"process {pid} has not ended within {DOWN_LIMIT_S:g} s: see {settings.run_dir}/logs")
            time.sleep(0.2)
    say("stopped")


@app.command()
def status(run_dir: RunDir = None, as_json: Json = False) -> None:
    """Show the services, counts, lag and latency of the run in a run folder. Exits 3 where nothing runs."""
    from orchestration.display import picture
    from orchestration.status import load_status, running_pid

    folder = settings_for(run_dir).run_dir
    last = load_status(folder)
    alive = running_pid(folder) is not None
    if not alive:
        last.mark_stopped()
    if as_json:
        typer.echo(last.to_json())
    else:
        out.print(picture(last))
    raise typer.Exit(0 if alive else NOT_RUNNING)


@app.command()
def logs(
    service: Annotated[str | None, typer.Argument(help="Which service; without it, the names.")] = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines come.")] = False,
    run_dir: RunDir = None,
) -> None:
    """Print the log of one service of a run."""
    folder = settings_for(run_dir).run_dir / "logs"
    known = sorted(path.stem for path in folder.glob("*.log"))
    if service is None:
        typer.echo("\n".join(known)) if known else say(f"no logs in {folder}")
        return
    path = folder / f"{service}.log"
    if service not in known:
        raise FleadError(f"no log of {service} in {folder}: there are {', '.join(known) or 'none'}")
    for line in _tail(path, lines, follow=follow):
        typer.echo(line, nl=False)


def _tail(path: Path, last: int, *, follow: bool) -> Iterator[str]:
    """The last lines of a log and those to come; one that has grown too long is renamed, and begins anew."""
    file = path.open(errors="replace")
    try:
        yield from deque(file, last)
        while follow:
            if line := file.readline():
                yield line
            elif path.exists() and not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield from file  # what came before it was renamed
                file.close()
                file = path.open(errors="replace")
            else:
                time.sleep(0.2)
    finally:
        file.close()
