"""The gemma-pipelines command: one module a group of commands; heavy imports happen inside them."""
