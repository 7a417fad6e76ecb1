"""The only door to the outside: Google's APIs, Kubernetes, the Hugging Face hub and the engine, one module each."""


def load() -> None:
    """Imports the libraries that every step comes to use, for a process that others are forked from."""
    from importlib import import_module

    from serving.clients.kubernetes import gke

    google = ("google.auth.transport.requests", "google.cloud.container_v1", "google.cloud.storage")
    for library in (*google, "huggingface_hub"):
        import_module(library)
    gke.official()
