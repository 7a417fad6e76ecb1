"""What a deployment's YAML file may say, and what it means when it does not say it.

One file describes one deployment. Seven fields are explicit pipeline parameters, since a person edits them in the
console: project, location, cluster, namespace, bucket, model, revision. The rest travels as one struct, and every step
validates the whole again (`from_parameters`), because the pipeline language turns integers into floats and
cannot take a struct apart.
"""

from serving.settings.example import commented_example
from serving.settings.model import EXPLICIT, Settings
from serving.settings.reading import from_parameters, load, override, read_values, validated
from serving.settings.sections import (
    Accelerator,
    Adapter,
    Assistant,
    Engine,
    Gate,
    Hub,
    Images,
    Lease,
    Prompt,
    Reservation,
    Schedule,
    Serving,
    Thresholds,
    Validation,
    Vertex,
    moment,
)
from serving.values import in_seconds

__all__ = [
    "EXPLICIT",
    "Accelerator",
    "Adapter",
    "Assistant",
    "Engine",
    "Gate",
    "Hub",
    "Images",
    "Lease",
    "Prompt",
    "Reservation",
    "Schedule",
    "Serving",
    "Settings",
    "Thresholds",
    "Validation",
    "Vertex",
    "commented_example",
    "from_parameters",
    "in_seconds",
    "load",
    "moment",
    "override",
    "read_values",
    "validated",
]
