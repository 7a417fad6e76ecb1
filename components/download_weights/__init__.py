"""Streams a release's files from the hub to the bucket, verified, the manifest last."""
