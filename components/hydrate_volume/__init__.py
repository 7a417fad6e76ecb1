"""hydrate_volume: brings a release's weights from the bucket onto a disk, and reads there what has arrived."""
