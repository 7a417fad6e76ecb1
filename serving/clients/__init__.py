"""The only door to the outside: Google's APIs, Kubernetes, the Hugging Face hub and the engine, one module each."""
