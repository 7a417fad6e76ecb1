"""Whether requests are refused by their priority while every pod has a queue, as the objectives of the settings say.

An endpoint picker (llm-d-router, as GAIE v1.5.0 before it; pkg/epp/framework/plugins/flowcontrol/saturationdetector)
refuses requests of a priority below 0 with 429 while its pool is saturated: on average over the ready pods, that is, as
many requests wait in one as `queueDepthThreshold` of its utilization-detector says, 5 by default. So a generation that
serves nobody yet is given that many, of ordinary priority and pod by pod, until this is seen. What the queues are made
of has a limit in number, length and time, and is dropped in the end.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from pydantic import BaseModel, ConfigDict

from serving.clients import engine
from serving.clients.engine import BadAnswer, Server
from serving.log import Say

FULL = 5
"""Requests that wait in a pod which the picker counts as full."""
_AIM = 2 * FULL
_MOST = 2048
"""Requests that fill the queues, all pods together: vLLM runs 256 or 1024 of them at once before any waits."""
_FIRST = 16
"""Of a pod; their number doubles until enough of them wait."""
_TOKENS = 256
"""What each of them asks for; when it ends, the next one takes its place."""
SECONDS = 120.0
"""How long queues may take to fill, and then the picker to refuse the first request."""
LONGEST_SECONDS = 5 * SECONDS
_ARRIVES_SECONDS = 5.0
"""After this long more requests are sent, whether the engine tells of all that were or not."""
_LOOK_SECONDS = 0.2
"""Neither engines nor pickers can be watched, only asked."""
_QUESTION = "What is a pod?"


class Objective(BaseModel):
    """A priority that requests may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """As the settings have it."""
    header: str
    """The InferenceObjective of the generation's own pool: what a request's header says."""
    priority: int


class Shedding(BaseModel):
    """What is to be seen of a generation that serves nobody yet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objectives: list[Objective]
    """One at least of a priority below 0."""
    pods: list[str]
    """Addresses of the generation's pods."""


class NotForced(Exception):
    """The queues could not be filled, so nothing was seen; the message says how far it came."""


async def show(
    server: Server, shedding: Shedding, model: str, *, api_key: str | None, figures: dict[str, Any], say: Say
) -> None:
    """Asks through the load balancer, which `server` is, while `model` has queues in all pods. `figures` become
    `{"refused": [names], "served": [names, "" without an objective], "waiting": in each pod at least, "requests": that
    filled the queues, "pods"}`.

    Raises BadAnswer for a request that was refused, or was not, against its priority; NotForced.
    """
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            await _show(server.patient(LONGEST_SECONDS), shedding, _Queues(shedding.pods, model, api_key), figures, say)
    except TimeoutError:
        raise NotForced(f"it was not done after {LONGEST_SECONDS:g} s") from None


async def _show(server: Server, shedding: Shedding, queues: _Queues, figures: dict[str, Any], say: Say) -> None:
    least = [each for each in shedding.objectives if each.priority < 0]
    others = [None, *(each for each in shedding.objectives if each.priority >= 0)]
    figures |= {"refused": [], "served": [], "waiting": 0, "requests": 0, "pods": len(shedding.pods)}
    waits: list[asyncio.Task[bool]] = []
    await _is_answered_while_nobody_waits(server, least[0])
    try:
        async with queues:
            say(f"filling the queues of {len(shedding.pods)} pods")
            await queues.fill()
            for objective in least:
                await _is_refused(server, objective, queues)
            waits += [asyncio.create_task(server.sheds(_QUESTION, 1, each.header if each else "")) for each in others]
            for objective in least:
                # They came while it was full: it is afterwards.
                await _is_refused(server, objective, queues)
                figures["refused"].append(objective.name)
        for other, refused in zip(others, await asyncio.gather(*waits), strict=True):
            if refused:
                whose = f"the objective {other.name} (priority {other.priority})" if other else "no objective"
                raise BadAnswer(f"a request of {whose} was refused (429): only those of a priority below 0 may be")
            figures["served"].append(other.name if other else "")
    finally:
        figures |= {"waiting": queues.waiting, "requests": queues.requests}
        await _cancel(waits)


async def _is_answered_while_nobody_waits(server: Server, objective: Objective) -> None:
    """The picker may not know yet how the pods are, and refuses for that long. Raises BadAnswer."""
    began = time.monotonic()
    while await server.sheds(_QUESTION, 1, objective.header):
        if time.monotonic() > began + SECONDS:
            raise BadAnswer(
                f"a request of the objective {objective.name} was refused (429) for {SECONDS:g} s although nobody waits"
            )
        await asyncio.sleep(1)


async def _is_refused(server: Server, objective: Objective, queues: _Queues) -> None:
    """A request that is not refused waits like others: another one is tried beside it. Raises BadAnswer when none of
    them is, and NotForced when the queues did not last."""
    began = time.monotonic()
    asked: set[asyncio.Task[bool]] = set()
    said = ""
    try:
        while time.monotonic() < began + SECONDS:
            asked.add(asyncio.create_task(server.sheds(_QUESTION, 1, objective.header)))
            done, asked = await asyncio.wait(asked, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                if isinstance(error := each.exception(), BadAnswer):
                    said = f" ({error})"
                elif each.result():
                    return
            await asyncio.sleep(_LOOK_SECONDS)
            await queues.fill()
    finally:
        await _cancel(asked)
    raise BadAnswer(
        f"{queues.waiting} requests and more waited in every pod, and a request of the objective {objective.name}, "
        f"priority {objective.priority}, was not refused within {SECONDS:g} s{said}. An endpoint picker counts a pod "
        f"with {FULL} as full, unless a patch of its ConfigMap says otherwise"
    )


class _Queues:
    """Requests of ordinary priority, as long as the block runs: in each pod more than it runs at once."""

    def __init__(self, pods: list[str], model: str, api_key: str | None):
        self._model, self._api_key = model, api_key
        self._places: dict[str, list[asyncio.Task[None]]] = {pod: [] for pod in pods}
        """Of each pod: a task is a request, and when that ends the next."""
        self._grew: dict[str, float] = {}
        self._numbers = itertools.count(1)
        self._failure = ""
        self.waiting = 0
        """In the pod with the shortest queue, when it was looked at last."""

    async def __aenter__(self) -> None:
        self._client = engine.direct()
        for pod in self._places:
            self._grow(pod)

    async def __aexit__(self, *_: object) -> None:
        await _cancel([task for places in self._places.values() for task in places])
        self._client.close()

    @property
    def requests(self) -> int:
        return sum(map(len, self._places.values()))

    async def fill(self) -> None:
        """Returns when enough requests wait in every pod. Raises NotForced when they do not within SECONDS."""
        began = time.monotonic()
        while True:
            loads = await asyncio.to_thread(self._look)
            self.waiting = min((waiting for waiting, _ in loads.values()), default=0)
            if self.waiting >= _AIM:
                return
            arrived = {pod: unfinished >= len(self._places[pod]) for pod, (_, unfinished) in loads.items()}
            if time.monotonic() > began + SECONDS or (self.requests >= _MOST and all(arrived.values())):
                raise NotForced(
                    f"with {self.requests} requests at once, {self.waiting} waited in the pod with the shortest of "
                    f"{len(loads)} queues, and {_AIM} were to{self._failure}"
                )
            for pod, (waiting, _) in loads.items():
                if waiting < _AIM and (arrived[pod] or time.monotonic() - self._grew[pod] > _ARRIVES_SECONDS):
                    self._grow(pod)
            await asyncio.sleep(_LOOK_SECONDS)

    def _look(self) -> dict[str, tuple[int, int]]:
        """Pod → requests that wait in it, and those that wait or run. Raises NotForced for one that does not say."""
        try:
            return {pod: engine.load(self._client, pod) for pod in self._places}
        except BadAnswer as error:
            raise NotForced(str(error)) from error

    def _grow(self, pod: str) -> None:
        """Twice as many requests, as far as their number may go."""
        places = self._places[pod]
        for _ in range(min(len(places) or _FIRST, _MOST - self.requests)):
            places.append(asyncio.create_task(self._occupy(pod)))
        self._grew[pod] = time.monotonic()

    async def _occupy(self, pod: str) -> None:
        async with engine.of_pod(pod, self._model, api_key=self._api_key, seconds=10 * SECONDS) as server:
            while True:
                try:
                    await server.occupy(f"{next(self._numbers)}. {_QUESTION}", _TOKENS)
                except BadAnswer as error:
                    self._failure = f" ({error})"
                    await asyncio.sleep(1)


async def _cancel(tasks: list[asyncio.Task[Any]] | set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
