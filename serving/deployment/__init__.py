"""What a deployment is in the cluster while runs come and go: its record, its Lease, its Jobs, its traffic."""
