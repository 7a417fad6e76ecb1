"""`emulators up`: the emulated cloud, for commands that are sent to a cloud."""

from __future__ import annotations

import shlex
import signal

from pipelines.cli.options import Programs, Sets, SettingsFile, State, values_of
from pipelines.cli.output import Output


def up(
    out: Output, state: State = None, file: SettingsFile = None, sets: Sets = None, programs: Programs = None
) -> None:
    """Start the emulated cloud, print the variables that lead to it, and serve until Ctrl-C.

    It has the project, bucket, cluster and model of the settings; without them those of `run`.
    """
    from pipelines import local
    from serving.settings import Settings, validated

    # Ended by SIGTERM as by Ctrl-C: nothing may be left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    values = {"scenario": "gcs-fuse", **values_of(file, sets, local.DEFAULTS)}
    settings = validated(Settings, values, file)
    parts = local.real_parts(None, state)
    stand_ins = local.programs(settings, programs)
    with (
        out.progress("starting hub, bucket, cluster, Vertex AI") as (say, _),
        local.bare(settings, state, parts, say, stand_ins) as site,
    ):
        variables = local.variables(site)
        lines = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
        out.result({"environment": variables}, lines)
        out.hint(
            f"up: project {settings.project}, bucket {settings.bucket}, cluster {settings.cluster} in "
            f"{settings.location}; kubectl --kubeconfig {site.cloud.kubeconfig}; Ctrl-C ends it"
        )
        local.serve_on(site.loss)
