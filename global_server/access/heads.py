"""Limits what comes before a request is known: its address and its headers, for which nobody need show anything."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from global_server import problems

MAX_HEAD = 64_000
"""Bytes of a request's head; by what the network handed over at once, it may be more."""

_TITLE = "Request Header Fields Too Large"
_DETAIL = f"the address and the headers of a request may have {MAX_HEAD} bytes"


class SmallHeads(HttpToolsProtocol):
    """Uvicorn's HTTP, which by itself keeps all that comes until a head is whole.

    What is neither the end of a head nor of a body is counted, so trailers and extensions of chunks are, too.
    """

    _waiting = 0
    _understood = False

    def data_received(self, data: bytes) -> None:
        """Take what came; close the connection where too much waits for its end."""
        self._understood = False
        super().data_received(data)
        self._waiting = 0 if self._understood else self._waiting + len(data)
        if self._waiting > MAX_HEAD and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self._understood = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on, to who limits bodies."""
        self._understood = True
        super().on_body(body)

    def _refuse(self) -> None:
        problem = problems.Problem(type="about:blank", title=_TITLE, status=431, detail=_DETAIL)
        body = problem.model_dump_json(exclude_defaults=True).encode()
        lines = (
            f"HTTP/1.1 431 {_TITLE}", f"content-type: {problems.MEDIA_TYPE}", f"content-length: {len(body)}",
            "connection: close", "", "",
        )  # fmt: skip
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()
