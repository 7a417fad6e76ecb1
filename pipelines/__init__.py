"""What happens in which order: refresh (the DAG), scenarios/ (a row each), compile, run here, the command line."""
