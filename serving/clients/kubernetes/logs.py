"""A pod's log, line by line, as it is written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from serving.clients.kubernetes.connection import Connection, lines, wake
from serving.clients.kubernetes.errors import is_away
from serving.clients.patience import Interrupted
from serving.errors import PipelineError

_SILENCE_SECONDS = 330
"""Whoever works may say nothing for minutes; a log has no sign of life of its own."""
_LAST_LINE_SECONDS, _LAST_LINES_SECONDS = 1, 5
"""How long the next line of a log that is followed no more may still take, and all of them together."""


class LogFollower(threading.Thread):
    """Reads a log stream to its end. One that breaks is opened again, and the lines that were handed on are skipped."""

    def __init__(self, connection: Connection, path: str, take: Callable[[str], None]):
        super().__init__(daemon=True)
        self._connection, self._path, self._take = connection, path, take
        self._stopped = threading.Event()
        self._response: Any = None
        self._taken = 0

    def run(self) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        while not self._stopped.is_set():
            try:
                self._response = self._connection.stream(self._path, {"follow": "true"}, silence=_SILENCE_SECONDS)
                for number, line in enumerate(lines(self._response)):
                    if self._stopped.is_set():
                        return
                    if number >= self._taken:
                        self._take(line.decode(errors="replace"))
                        self._taken += 1
                return
            except (HTTPError, OSError, ValueError, AttributeError, Interrupted):
                self._stopped.wait(1)
            except ApiException as error:
                if not is_away(error.status):
                    return
                self._stopped.wait(1)
            except PipelineError:
                return
            finally:
                if self._response:
                    self._response.close()  # What is left unread of a stream holds its connection.

    def stop(self) -> None:
        before, give_up = -1, time.monotonic() + _LAST_LINES_SECONDS
        while self.is_alive() and self._taken > before and time.monotonic() < give_up:
            before = self._taken
            self.join(timeout=_LAST_LINE_SECONDS)
        self._stopped.set()
        wake(self._response)
