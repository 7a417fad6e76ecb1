"""A kubelet that runs pods as processes of this machine. It is not a sandbox: it runs what images are mapped to.

What it cannot do: file systems of images (a path outside the volumes is the machine's own), users and capabilities
(securityContext is not applied), a service-account token at its fixed path for clients that know no other. With
emulated_cloud/real/runtime.py in place of SharedRoot it can do all but images and capabilities.
"""
