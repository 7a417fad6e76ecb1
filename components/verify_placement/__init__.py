"""verify_placement: in which zones a generation serves, and from which disks."""
