"""The only door to the outside: Google's APIs, Kubernetes and the Hugging Face hub, one module each."""
