"""Vertex AI Pipelines, version 1: pipelineJobs, schedules, their operations, in the project's regions.

What there is lies in a folder (store.py) and outlives the emulator, as buckets do. Runs do not: of a job that ran when
the emulator ended, the next one says FAILED, as of any job that the service lost. Ticks of a schedule that nobody was
there for are dropped.

A job runs what was POSTed: its `pipelineSpec`, with its `parameterValues`, in a process of its own (runner.py) that
gives it to kfp's local runner, whose tasks are processes of this machine with the interpreter of this one, whatever
their image. They see `environment` of the configuration (google/config.py), in which `{self}` is this emulator's own
address, host and port:

    "aiplatform": {"folder": "/state/aiplatform", "locations": ["us-central1"], "grace_seconds": 30,
                   "environment": {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:1", "GCE_METADATA_HOST": "{self}"}}

Where this user may have a process table of its own for each task, its command is process 1 there, as in a container:
cancelling sends SIGTERM to that one alone, and after `grace_seconds` ends them all. Elsewhere it is a process like any
other. What tasks print is in Cloud Logging (`logs` of the configuration), under the id of their CustomJob.

The service has a clock (clock.py), which is this machine's until a test moves it:

    POST /_emulator/clock {"time": "2026-03-29T00:59:00Z"}     → {"time": …} when all that was due on the way is done
    GET  /_emulator/clock

It goes on from there. Every tick of a schedule that is passed happens at its time and in order, but jobs run no faster:
a tick that finds the last run still active is dropped or queued, as the schedule says.

A job does what a test scripts for the request that makes it (faults.py, action `outcome`, once the request is accepted;
`path` is matched against `/v1/projects/…/pipelineJobs` without the query, for a schedule's jobs as well). Keys of
`outcome`, which counts as consumed when it happens:

    {"hold": true}                            it stays PENDING until another script replaces this one
    {"seconds": 2}                            it is PENDING that long
    {"error": {"code": 13, "message": "…"}}   it is FAILED before any task
    {"task": "train", "after": "epoch 3"}     that task is killed without a word when it has printed a line that
                                              matches; without `after`, as soon as it runs. `"attempts": 3`: in three
    {"task": …, "after": …, "cancel": true}   at that line the job is cancelled, as if somebody had asked for that, and
                                              the task stands still until it is told
    {"exit_after_cancel": false}              exit tasks are not run when it is cancelled
    {"refused": {"message": "…"}}             the request is refused after all, with these words: of a schedule's job,
                                              that is what the schedule shows of its last run

and of one for `POST …/pipelineJobs/ID:cancel` (`path` is then without `:cancel`): `hold` and `seconds`, for as long as
the job is CANCELLING before its tasks hear of it.

Not known of the service, and decided here: exit tasks run after a cancel; a schedule's next run is not shown while it
is paused; of a local time that comes twice when clocks go back both are ticks, and one that is skipped is none; the ids
of a schedule's jobs. Different from the service on purpose: no caching, no template registry, no gRPC; tasks that do
not depend on each other run one after another; artifacts' bytes stay in the run's own folder, which goes with it; tasks
all have the identity of the caller (google.auth would ask Google itself about any other); a project has no Compute
Engine default service account, so a job has to name one.
"""

from emulated_cloud.google.aiplatform.service import AiPlatform

__all__ = ["AiPlatform"]
