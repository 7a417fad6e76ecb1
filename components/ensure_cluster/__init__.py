"""Sees to the node pools that the server's nodes come from, and to the kind of object that puts them in order."""
