"""What a model needs, said by its own files: config.json and the headers of its shards, and a rule that real starts of
the engine hold (`measured` in manifests/catalog.yaml). Nothing here reads anything but the catalog."""

from serving.sizing.architecture import Architecture, named, of_config
from serving.sizing.fits import Fit, everywhere, fewest_cards, host, judged, of_catalog, replayed
from serving.sizing.rule import Model, Sizing, Wish, size, unknown, warning
from serving.sizing.weights import Tensor, Weights, of_tensors

__all__ = [
    "Architecture",
    "Fit",
    "Model",
    "Sizing",
    "Tensor",
    "Weights",
    "Wish",
    "everywhere",
    "fewest_cards",
    "host",
    "judged",
    "named",
    "of_catalog",
    "of_config",
    "of_tensors",
    "replayed",
    "size",
    "unknown",
    "warning",
]
