"""Real software in place of an emulator: kube-apiserver and its companions, gcsfuse, a gateway, vLLM on the CPU.

parts          what there is, from which pins, whether it is built and can run here
building       `python -m emulated_cloud.real build`: builds them into a cache, where they are used
namespace      a machine of the cluster's own: private network and mounts, with relays to this one
control_plane  etcd, kube-apiserver, kube-controller-manager, kube-scheduler and the snapshot controller as one
               supervised process
gateway        Istio's pilot as the controller of Gateways, and what it needs beside it
endpoint_picker  GAIE's endpoint picker as it stands for llm-d-router's image
gcsfuse        mounts for the GCS FUSE CSI driver
container      a private root for a container's process: volumes at their paths, a user of its own
engine         `vllm serve` as the CPU build understands it
pins/          versions and checksums of all of it
"""
