"""A cluster's API through the official client's connection: objects are plain dicts, kinds are named by kind.

Every write names this project as its field manager. Transient failures are retried here; what is left is one of our
errors. Waiting is by watch (`Cluster.follow`).

gke.py finds a deployment's cluster, cluster.py has the verbs, watch.py and logs.py what is read as it happens;
connection.py sends every request, kinds.py says where a kind lives, errors.py what a refusal means.
"""

from serving.clients.kubernetes.cluster import FIELD_MANAGER, Cluster
from serving.clients.kubernetes.errors import ApiError, ConflictError
from serving.clients.kubernetes.gke import connect
from serving.clients.kubernetes.kinds import KINDS, Object
from serving.clients.kubernetes.watch import Subject

__all__ = ["FIELD_MANAGER", "KINDS", "ApiError", "Cluster", "ConflictError", "Object", "Subject", "connect"]
