"""Which engine has probably cached the beginning of a prompt: the one that was sent it last, block by block."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from emulated_cloud.gateway.picker.config import Prefixes

CHARACTERS_PER_TOKEN = 4


class PrefixIndex:
    """For each server (`namespace/pod`) the blocks that it was sent, the oldest forgotten beyond its capacity."""

    def __init__(self, settings: Prefixes):
        self._settings = settings
        self._sent: dict[str, OrderedDict[bytes, None]] = {}

    def blocks(self, model: str, prompt: bytes, block_tokens: int) -> list[bytes]:
        """A digest for each whole block of the prompt, over all before it and the model; none for a short one."""
        tokens = block_tokens if self._settings.auto_tune and block_tokens else self._settings.block_tokens
        size = tokens * CHARACTERS_PER_TOKEN
        key, digests = model.encode(), []
        for start in range(0, min(len(prompt), size * self._settings.max_blocks) - size + 1, size):
            key = hashlib.blake2b(prompt[start : start + size], key=key[:64], digest_size=8).digest()
            digests.append(key)
        return digests

    def share(self, server: str, blocks: Sequence[bytes]) -> float:
        """How much of the prompt the server was sent before, 0 to 1."""
        if not blocks:
            return 0.0
        sent = self._sent.get(server, OrderedDict())
        matched = sum(1 for _ in itertools.takewhile(sent.__contains__, blocks))
        return matched / len(blocks)

    def add(self, server: str, blocks: Sequence[bytes]) -> None:
        sent = self._sent.setdefault(server, OrderedDict())
        for block in blocks:
            sent[block] = None
            sent.move_to_end(block)
        while len(sent) > self._settings.capacity:
            sent.popitem(last=False)

    def keep(self, servers: set[str]) -> None:
        """Forgets all other servers."""
        for server in self._sent.keys() - servers:
            del self._sent[server]

    def __len__(self) -> int:
        return sum(map(len, self._sent.values()))


def prompt_of(body: Mapping[str, Any]) -> bytes:
    """What of a request's body the engine reads first."""
    for name in ("messages", "prompt", "input", "items"):
        if name in body:
            value = body[name]
            return value.encode() if isinstance(value, str) else json.dumps(value).encode()
    return b""
