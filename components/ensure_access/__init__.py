"""Takes the deployment's Lease and sees to the namespace, the service account and the bucket's binding."""
