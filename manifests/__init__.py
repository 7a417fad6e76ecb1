"""What Kubernetes is told: `<feature>/<scope>/*.yaml` with ${placeholders}, what all share in `base/`; catalog.yaml.

The folder is the scope: `admin/` is applied once, by an administrator; `shared/` is one a deployment, `generation/` one
a generation; `entry/` says who is live, and promotion alone writes it; `patch/<kind>.yaml` is merged (a strategic
merge) into base's object of that kind. A feature's placeholders are what its module in `serving/features/` gives.
"""
