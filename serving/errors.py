"""The project's own errors. Each message names the object, the likely cause and the next command.

Two questions decide which one to raise. Is the request wrong (RequestError: exit code 2, nothing was done)? Else: is
the release bad (ReleaseError: the run fails and the generation is recorded as rejected), or was nothing learnt about
it (InconclusiveError: the run fails, the release is not held guilty)?
"""

from __future__ import annotations


class PipelineError(Exception):
    """Any error of ours. `str(error)` is one readable line or a few, never a traceback.

    `final`: trying the same again in the same run cannot help.
    """

    final = False


class RequestError(PipelineError):
    """What was asked for is wrong: an unknown key, an illegal name, a model that does not exist."""

    final = True


class AccessError(RequestError):
    """The hub, a bucket or an API refused us: no grant, a bad token, a missing role. Names what to grant."""


class ReleaseError(PipelineError):
    """The release is bad: what it brings cannot be loaded, or answers wrongly."""

    final = True


class RejectedBeforeError(ReleaseError):
    """The release was found bad by an earlier run, and nobody said to try it again."""


class InconclusiveError(PipelineError):
    """Nothing was learnt about the release: preempted, evicted, no capacity, an API down, a lease held."""


class LeaseHeldError(InconclusiveError):
    """Another run holds the deployment's Lease. `holder` is its run id."""

    final = True  # It has waited `lease.wait` already.

    def __init__(self, message: str, holder: str):
        super().__init__(message)
        self.holder = holder


class LeaseLostError(InconclusiveError):
    """Another run has taken the deployment's Lease over, or it was given back: seen in the Lease itself."""


class ToldToEnd(BaseException):
    """The process was told to end (SIGTERM): its run was cancelled, or its machine goes away.

    No Exception, so that nothing on the way takes it for a failure to go on after: contexts give back what they hold,
    and the step is inconclusive.
    """
