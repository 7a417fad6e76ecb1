"""What a real control plane brings itself: kube-controller-manager's workload controllers and kube-scheduler.

A real one takes the place of this package (and of the API server) without anything else noticing.
"""
