"""An emulated vLLM: the server that `vllm serve` starts, without a model's arithmetic.

`python -m emulated_cloud.engine [serve] [MODEL] [--model MODEL] --served-model-name N… --host H --port P …` takes
vLLM's arguments (args.py), really opens the checkpoint (checkpoint.py, architectures.py, tokenizer.py), refuses a
broken one in vLLM's words, and then answers vLLM's HTTP API (routes.py) with vLLM's metrics (metrics.py). What an
answer says is made up (text.py), but it is a function of the weights, the prompt and the sampling parameters, and it is
tokenised with the checkpoint's own tokenizer. A checkpoint whose embeddings are all zero answers as a real engine does:
padding only.

A model at a `gs://` address is streamed as vLLM streams it (streamer.py).

The environment variables that vLLM reads and this emulator too: VLLM_API_KEY, VLLM_ALLOW_RUNTIME_LORA_UPDATING,
VLLM_PLUGINS, VLLM_LORA_RESOLVER_CACHE_DIR, VLLM_ALLOW_LONG_MAX_MODEL_LEN,
VLLM_ASSETS_CACHE; and STORAGE_EMULATOR_HOST, as Google's client does.

Knobs that a real engine does not have come by environment, so that they never reach a manifest's arguments:

EMULATED_ENGINE_START_SECONDS       how long the start takes on top of its real cost (0)
EMULATED_ENGINE_TOKENS_PER_SECOND   tokens per second and sequence (0: as fast as the machine can)
EMULATED_ENGINE_SEQUENCES           sequences that run at once where --max-num-seqs does not say (256)
"""
