"""An emulated endpoint picker: the program of the image `ghcr.io/llm-d/llm-d-router-endpoint-picker`, v0.10.0.

A gateway's Envoy asks it by ext_proc, for each request, which pod of an InferencePool is to answer (processing.py). It
takes llm-d-router's flags (options.py) and its EndpointPickerConfig (config.py), learns pods, objectives and rewrites
from the API server as its service account (pool.py), and chooses by what the engines' metrics say (engines.py,
scheduling.py, prefixes.py). Facts: github.com/llm-d/llm-d-router v0.10.0 and its ancestor
sigs.k8s.io/gateway-api-inference-extension v1.5.0, which the same contract tests can run against.

What differs from the real one:
- It asks the engines when a request comes, once every `--refresh-metrics-interval` at most, and waits for the answer:
  an idle picker does nothing (the real one asks every 50 ms, always).
- Of the plugins it has those that choose by queue, KV cache, running requests, prefix and adapter, and refuses others.
  Flow control and leader election are not there; two replicas work side by side, each with prefixes of its own.
- At SIGTERM it is NOT_SERVING at once and serves on until it was idle for a second, at most `--drain-timeout` (the
  real one always stays that long).

What a container of a real cluster has by its network namespace comes by environment: EMULATED_HOST (the pod's address),
EMULATED_SERVICE_ACCOUNT (the folder of its token).
"""
