"""What a real control plane brings itself: kube-controller-manager's controllers, kube-scheduler, and the snapshot
controller that GKE runs beside them.

`python -m emulated_cloud.kubernetes.controllers --kubeconfig FILE` runs them all; each module is one controller, named
by what it looks after. A real control plane takes the place of this package (and of the API server) without anything
else noticing.
"""
