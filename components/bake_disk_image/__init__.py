"""Makes the disk image that nodes start with: the engine's image unpacked, as a node's cache reads it."""
