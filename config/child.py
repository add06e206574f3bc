"""Child processes that end with their parent, and the ports they want."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

from flead.errors import PortTaken

_PRCTL = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, int(sys.argv[1])); os.execvp(sys.argv[2], sys.argv[2:])"


def ends_with_parent(command: list[str], by: int = signal.SIGTERM) -> list[str]:
    """The command, wrapped so that the kernel sends it `by` when the thread that started it dies.

    On Linux, by prctl(2) with PR_SET_PDEATHSIG (1) in a process that then becomes the command: code that runs between
    fork and exec may deadlock where threads run. Elsewhere the command is returned unchanged.
    """
    if sys.platform != "linux":
        return command
    return [sys.executable, "-ISc", _PRCTL, str(int(by)), *command]


def stop(process: subprocess.Popen[bytes], limit_s: float = 20.0, *, by: int = signal.SIGTERM) -> None:
    """End a child process: politely, by a signal, and after `limit_s` at once; one that has ended is fine."""
    process.send_signal(by)
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_taken(port: int) -> bool:
    """Whether something listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def check_port_free(port: int, setting: str, who: str) -> None:
    """Raise `PortTaken` where something listens on the port that `who` wants; the mend names the setting."""
    if port_is_taken(port):
        variable = "FLEAD_" + setting.upper().replace(".", "__")
        raise PortTaken(
            f"port {port}, which {who} needs, is taken: stop what listens there, or choose another port with {variable}"
        )
