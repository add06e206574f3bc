"""Fetch the Intel Berkeley Research Lab readings: resumable, verified, and there either whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx

from flead.errors import BadDataset, Unavailable

INTEL_LAB_URL = "http://db.csail.mit.edu/labdata/data.txt.gz"
INTEL_LAB_SHA256 = "d99288c8f406ca6604d359ceaa0d8adfffa79e7095061a1e27dc4399f48c7225"
INTEL_LAB_SIZE = 34_422_518
"""Bytes."""

Progress = Callable[[int, int], None]
"""Called with the bytes there so far, and the bytes in all."""

_MEND = "use --data simulated, or --data PATH with a copy of the file"
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_BLOCK = 2**16


def download_intel_lab(
    destination: str | Path,
    *,
    on_progress: Progress | None = None,
    url: str = INTEL_LAB_URL,
    sha256: str = INTEL_LAB_SHA256,
    size: int = INTEL_LAB_SIZE,
) -> Path:
    """Fetch the full file of 2.3 million readings; nothing is fetched if it is there already.

    What arrives goes into `<destination>.part`, which a later call goes on with, and gets its name once the checksum
    is right.

    Parameters
    ----------
    destination:
        the file to make; its folder is made too
    on_progress:
        called after each block with the bytes so far and `size`
    url, sha256, size:
        where it comes from, and what it must be; size in bytes

    Returns
    -------
    the destination

    Raises
    ------
    Unavailable
        no network, a server that fails, or a folder that cannot be written; what has arrived is kept
    BadDataset
        what is there is another file; nothing of it is kept

    Example
    -------
    ``download_intel_lab("run/data/intel-lab.txt.gz", on_progress=lambda done, total: print(done / total))``
    """
    destination = Path(destination)
    part = destination.with_name(destination.name + ".part")
    try:
        if destination.is_file() and _is_right(destination, sha256, size):
            return destination
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not (part.exists() and _is_right(part, sha256, size)):
            _fetch(url, part, size, on_progress)
            _verify(part, url, sha256, size)
        part.replace(destination)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(
            f"{url} cannot be fetched ({_one_line(error)}): try again later to go on, or {_MEND}"
        ) from error
    except OSError as error:
        raise Unavailable(
            f"{destination} cannot be written ({error.strerror or error}): name another place, or {_MEND}"
        ) from error
    return destination


def _fetch(url: str, part: Path, size: int, on_progress: Progress | None) -> None:
    """Go on with the partial file; begin again where the server cannot go on or there is too much already."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        part.unlink()
        have = 0
    # Raw bytes of an unencoded body: some servers call a .gz file an encoding, and it must not be unpacked
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # it is of another file, and no later call could go on with it
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        done = have if resumed else 0
        announced = int(response.headers.get("Content-Length", size - done))
        if done + announced != size:  # what an earlier call brought may still be good
            raise BadDataset(f"{url} is not the file that FLEAD knows ({done + announced} bytes, not {size}): {_MEND}")
        with part.open("ab" if resumed else "wb") as file:
            for block in response.iter_raw(_BLOCK):
                file.write(block)
                done += len(block)
                if on_progress is not None:
                    on_progress(done, size)
                if done > size:  # another file; do not fill the disk with it
                    return


def _is_right(path: Path, sha256: str, size: int) -> bool:
    if path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _verify(part: Path, url: str, sha256: str, size: int) -> None:
    got = part.stat().st_size
    if got < size:
        raise Unavailable(f"{url} ended after {got} of {size} bytes: try again to go on, or {_MEND}")
    if not _is_right(part, sha256, size):
        part.unlink()
        raise BadDataset(f"{url} is not the file that FLEAD knows (its checksum differs), it was deleted: {_MEND}")


def _one_line(error: httpx.HTTPError | httpx.InvalidURL) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    return " ".join(str(error).split()) or type(error).__name__
