"""Looks whether nodes found the engine's image in their cache."""
