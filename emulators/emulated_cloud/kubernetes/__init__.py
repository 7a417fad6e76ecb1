"""A GKE cluster on a laptop. Its parts are processes that meet at the API server alone:

* `apiserver/`: an emulated kube-apiserver (`python -m emulated_cloud.kubernetes.apiserver`);
* `crds/`: the CustomResourceDefinitions that GKE installs itself, read by the API server when it starts;
* `controllers/` (`python -m emulated_cloud.kubernetes.controllers`) and `gke/` (`python -m
  emulated_cloud.kubernetes.gke`: GKE's own parts with `kubelet/` and `network/`), ordinary clients of whatever API
  server they are given.

What these share lies beside them: `resources` is the table of kinds, `client` a client and informers, `quantity`,
`selectors`, `scheduling`, `attachment` and `pods` what Kubernetes computes everywhere alike, `tls` the servers'
certificates.
"""
