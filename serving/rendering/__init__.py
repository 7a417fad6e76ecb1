"""From settings and a release to the Kubernetes objects that are applied.

manifests.py reads what lies in manifests/, render.py puts it together, engine.py says what the server is, access.py
what the pipeline may do, generation.py how a generation is called; patches.py merges.
"""
