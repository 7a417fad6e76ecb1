"""Looks in which zones, and on which accelerators, the generation's pods are."""
