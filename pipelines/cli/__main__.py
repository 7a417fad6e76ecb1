"""`python -m pipelines.cli` is `gemma-pipelines`."""

from pipelines.cli import main

main()
