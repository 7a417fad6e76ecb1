"""From settings and a release to the Kubernetes objects that are applied."""
