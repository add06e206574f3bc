"""What the threads have in common that follow a topic for as long as the server runs."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod

from flead.errors import Unavailable

LOG = logging.getLogger(__name__)

RETRY_S = 1.0
STOP_LIMIT_S = 15.0


class Follower(threading.Thread):
    """Follows until it is stopped, and starts over whatever happens to Kafka or MongoDB meanwhile.

    Trouble is logged when it changes.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._stopping = threading.Event()

    @abstractmethod
    def _follow(self) -> None:
        """Follow until `_stopping` is set, or something goes wrong."""

    def stop(self) -> None:
        """End after the batch at hand."""
        self._stopping.set()
        if self.is_alive():
            self.join(STOP_LIMIT_S)

    def run(self) -> None:
        """Follow; start over after anything unforeseen."""
        last_trouble = ""
        while not self._stopping.is_set():
            try:
                self._follow()
            except Unavailable as error:
                if str(error) != last_trouble:
                    LOG.warning("%s starts over: %s", self.name, error)
                last_trouble = str(error)
            except Exception:
                LOG.exception("%s starts over", self.name)
            self._stopping.wait(RETRY_S)
