"""What Kubernetes is told: a folder a scenario with ${placeholders}, and catalog.yaml with the sizes and pins."""
