"""A GKE cluster on a laptop. Its parts are processes that meet at the API server alone:

* `apiserver/`: an emulated kube-apiserver (`python -m emulated_cloud.kubernetes.apiserver`);
* `crds/`: the CustomResourceDefinitions that GKE installs itself, read by the API server when it starts;
* the other folders: controllers, GKE's own parts and a process kubelet, ordinary clients of whatever API server they
  are given.
"""
