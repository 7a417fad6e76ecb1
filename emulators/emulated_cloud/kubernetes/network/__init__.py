"""What stands for cluster DNS, kube-proxy and load balancers, in the process of gke/.

`proxy` is the forward proxy by which pods reach Services by name, `services` knows the endpoints of each, `gateways`
the addresses of those, `relay` moves the bytes, `expose`, `loadbalancer` and emulated_cloud/gateway are the ways in
from outside, `addresses` the loopback network of a cluster.
"""
