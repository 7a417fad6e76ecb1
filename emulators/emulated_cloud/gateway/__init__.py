"""GKE's Gateways, in the process of kubernetes/gke: real Envoy as the data plane, fed by a controller of ours.

`judging` reads Gateways, HTTPRoutes and InferencePools and says what is wrong with each, in the conditions that Istio's
controller writes for the same manifests; `status` writes them; `xds` makes Envoy's configuration of what is right;
`envoy` is a process of Envoy, one a Gateway, which takes it from files; `certificates` is what HTTPS listeners show;
`controller` holds them together (kubernetes/network/gateways.py is how others find a Gateway's address).

A Gateway's address is one of the cluster's load balancers' (kubernetes/network/addresses.py): pods reach it as it is,
and this machine by what `expose` lists. Endpoints are probed by Envoy as a Google load balancer probes them: as a
HealthCheckPolicy says, without one on `/`; what answers anything but 200 gets no traffic.

Scripted faults: `gateway_faults` in the process's configuration (kubernetes/gke/disk_faults.py: how they are counted),
by the names of Gateways:

not_programmed   {name: words}: it gets neither address nor listener, and these words say why
certificate_of   {name: host}: its certificate is for that host alone
broken           {name: true}: what it is configured with is damaged on the way to Envoy
"""
