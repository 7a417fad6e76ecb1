"""The cloud, on a laptop: servers that speak the wire protocols of what the product talks to.

hub (Hugging Face), storage (GCS), google (the other Google APIs), kubernetes (API server, controllers, GKE's
parts, process kubelet) and engine (vLLM). Each is a process, `python -m emulated_cloud.<name>`, that knows nothing of
the product. process.py starts and stops them; http.py is what their threaded servers share; faults.py scripts
failures."""
