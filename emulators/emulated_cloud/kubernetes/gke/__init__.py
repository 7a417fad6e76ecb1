"""GKE's own parts: node auto-provisioning, admission, CSI drivers and the add-ons that it installs.

Compute Engine's disks are a family: `disks` keeps them, `disk_faults` says what goes wrong with them; `pd` is their CSI
driver, with its sidecars `provisioner`, `attacher` and `snapshotter`; `populator` fills volumes from a bucket.

`python -m emulated_cloud.kubernetes.gke` runs them all with the kubelet and the network of all nodes in one process, as
ordinary clients of whatever API server the kubeconfig names. Later parts (ComputeClasses, Hyperdisk, Gateways, the
metrics that an HPA reads) are one more module each, started in `__main__`: a CSI driver is a
`kubelet.csi.NodeDriver`, a choice of machines goes into `autoscaler`, a gateway is a relay on `network.services`.
"""
