"""An emulated kube-apiserver: the API of Kubernetes 1.35 for the kinds that the scenarios use, and for any CRD.

Run by `python -m emulated_cloud.kubernetes.apiserver --data DIR --tokens FILE` (`__main__.py` lists the options). A
request goes `server` (HTTP, authentication, request log) → `routes` (which handler) → `storage` (create, update,
patch, delete as the generic registry of the real server does them) → `store` (SQLite and the watch history).
`resources` adds to the table of kinds what a server knows of them; `schema` reads the OpenAPI definitions that drive
unknown fields, patches and server-side apply. PATCH is in `patching`, its formats in `patch_types` and `apply`; a
subresource has a module of its own (`scale`, `reviews`, `pods`), and what is filled in, made and refused is in
`defaults`, `creation` and `validation`.

What it does not do: RBAC (whoever is authenticated may do everything), admission (quota, webhooks, admission policies,
which are stored and not evaluated), CEL rules, exec, attach and port-forward.
"""
