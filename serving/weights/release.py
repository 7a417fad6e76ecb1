"""What resolve_model found and every later step works on."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from serving.sizing import Sizing


class Release(BaseModel):
    """One release of a model on its way to one deployment. Travels between steps as a struct."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    """The run that resolved it: on Vertex the pipeline job's name. At most 63 characters (it is a label)."""
    model: str
    """Hub name, `org/name`."""
    commit: str
    """The hub's commit, or the digest of a folder's listing: 40 hex digits."""
    commits: dict[str, str] = {}
    """The commits of what is served beside the model, by role: `assistant`, or an adapter's name."""
    max_lora_rank: int = 0
    """The engine's `--max-lora-rank`; 0 without adapters."""
    weights_key: str
    weights_uri: str
    """`gs://BUCKET/models/ORG/NAME/KEY`, no trailing slash."""
    adapters_key: str = ""
    """The weights key of the adapters, where they change in place and so are a set of their own; empty without any, and
    where they are part of the weights."""
    generation: str
    live: str = ""
    """The generation that serves now; empty before the first promotion. The precondition of the promotion."""
    api_key_version: str = ""
    """The Secret Manager version of the server's API key now: `projects/NUMBER/secrets/S/versions/N`; empty without."""
    architecture: str = ""
    """First entry of config.json's `architectures`."""
    weights_bytes: int = 0
    """The sum of the served files' sizes, adapters and assistant included."""
    zones: list[str] = []
    """The zones in which what the release is served from has to be; empty where that is not ours to say."""
    proxy_ranges: list[str] = []
    """The ranges from which a Gateway's proxies call the pods; empty without a Gateway, or where the settings say
    them."""
    image_digest: str = ""
    """`sha256:…` of the manifest by which pods pull the engine's image; empty where they pull it by its name."""
    disk_image: str = ""
    """The Compute Engine image that nodes have a secondary boot disk of; empty without."""
    sizing: Sizing = Sizing()
    """How it runs on the deployment's cards."""
    beside: Sizing | None = None
    """How it runs on the accelerator that a pod may find in their place; None where there is no choice."""

    @property
    def adapters_uri(self) -> str:
        """Where the set of adapters is: as weights_uri, empty where it has none of its own."""
        return f"{self.weights_uri.rpartition('/')[0]}/{self.adapters_key}" if self.adapters_key else ""

    @property
    def weights_uris(self) -> list[str]:
        """Every set of weights that the release is served from."""
        return [self.weights_uri, *filter(None, [self.adapters_uri])]

    def as_struct(self) -> dict[str, Any]:
        """The release as a pipeline parameter: a struct of kfp cannot hold null, which is left out."""
        return self.model_dump(exclude_none=True)
