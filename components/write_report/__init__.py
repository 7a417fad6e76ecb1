"""The exit task: cleans up after its run, gives the Lease back and writes the report."""
