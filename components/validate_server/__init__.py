"""validate_server: asks a new generation, from inside the cluster, whether it serves what it should."""
