"""Brings a generation up beside the live one, and waits until it is ready or cannot become it."""
