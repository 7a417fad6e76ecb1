"""A Kubernetes Service as the entry: clients call one address, whose selector says which generation is live."""
