"""vLLM's log lines: `(EngineCore pid=7) ERROR 11-24 03:42:19 [core.py:936] …`, on stderr."""

from __future__ import annotations

import os
import sys
import time

API_SERVER = "APIServer"
ENGINE_CORE = "EngineCore"


def log(level: str, where: str, message: str, process: str = API_SERVER) -> None:
    """One line for each line of the message. `where` is vLLM's `file.py:line`."""
    write(f"({process} pid={os.getpid()}) {level} {time.strftime('%m-%d %H:%M:%S')} [{where}] ", message)


def write(prefix: str, message: str) -> None:
    sys.stderr.write("".join(f"{prefix}{line}\n" for line in message.split("\n")))
    sys.stderr.flush()


def access(line: str) -> None:
    """uvicorn's line for each request."""
    write(f"({API_SERVER} pid={os.getpid()}) INFO:     ", line)


def traceback(words: str) -> None:
    """The end of the front end's traceback: what the exception said."""
    write("", words)


def info(where: str, message: str, process: str = API_SERVER) -> None:
    log("INFO", where, message, process)


def warning(where: str, message: str) -> None:
    log("WARNING", where, message)


def error(where: str, message: str, process: str = API_SERVER) -> None:
    log("ERROR", where, message, process)
