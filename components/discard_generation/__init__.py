"""Takes a generation that failed out of the cluster and remembers why."""
