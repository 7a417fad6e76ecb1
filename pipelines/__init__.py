"""What happens in which order: scenarios/ (one DAG a file, wiring only), compile, run here, the command line."""
