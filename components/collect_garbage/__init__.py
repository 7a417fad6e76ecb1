"""Deletes generations beyond those that are kept, and weights that no deployment uses."""
