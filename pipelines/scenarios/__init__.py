"""One DAG a file, wiring only: what a step does is in components/."""
