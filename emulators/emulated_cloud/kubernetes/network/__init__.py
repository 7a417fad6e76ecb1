"""What stands for cluster DNS, kube-proxy and load balancers: a forward proxy for pods, and relays for Services."""
