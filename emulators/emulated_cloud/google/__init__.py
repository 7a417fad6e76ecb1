"""Google's APIs other than storage, on a laptop: `python -m emulated_cloud.google --config FILE`.

One server for all of them: the metadata server (metadata.py), container (container.py), Secret Manager
(secretmanager.py), Resource Manager (resourcemanager.py), Cloud Logging (logging.py), Cloud Monitoring (monitoring.py),
Artifact Registry (artifactregistry.py), Service Usage (serviceusage.py), IAM (iam.py; the policies of everything:
policies.py), Cloud Build (cloudbuild/), Vertex AI Pipelines (aiplatform/, with jobs that run) and Compute Engine
(compute/, with machines that run), over REST, as the clients speak it with `transport="rest"` and
`api_endpoint="http://127.0.0.1:PORT"`. An API is a module of its host's name, with its paths and its resources: one
function answers a call or says that it is not its own (call.py); routes.py asks them in turn.

google.auth finds its credentials here with nothing but two variables, because it asks whether there is a metadata
server by address and then everything else by name:

    GCE_METADATA_HOST=127.0.0.1:PORT GCE_METADATA_IP=127.0.0.1:PORT

The configuration is a JSON file (config.py checks it):

    {"project": {"id": "my-project", "number": "123456789012"},
     "service_account": "runner@my-project.iam.gserviceaccount.com",
     "token": "the access token that the metadata server gives, and that all other APIs want",
     "clusters": [{"name": "main", "location": "us-central1", "endpoint": "127.0.0.1:6443",
                   "ca_certificate": "-----BEGIN CERTIFICATE-----…", "version": "1.35.1-gke.1396000",
                   "autopilot": true, "dns_endpoint": "gke-….gke.goog",
                   "node_pools": [{"name": "l4", "disk_images": ["projects/my-project/global/images/vllm"],
                                   "image_streaming": true, "machine_type": "g2-standard-8"}]}],
     "secrets": {"hf-token": {"1": "value", "2": {"value": "other", "state": "DISABLED"}}},
     "compute": {"folder": "/state/compute", "zones": ["us-central1-a", "us-central1-b"]},
     "aiplatform": {"folder": "/state/aiplatform", "locations": ["us-central1"]},
     "logs": "/state/logging.jsonl",
     "metrics": "/state/metrics.json",
     "folder": "/state/project",
     "registry": "/state/registry",
     "cloudbuild": {"storage": "http://127.0.0.1:1", "command": ["make", "check"]},
     "services": ["serviceusage.googleapis.com"],
     "denied": ["projects/my-project/secrets/hf-token"],
     "denied_permissions": ["iam.roles.create"],
     "accounts": ["pipeline@my-project.iam.gserviceaccount.com"]}

All but the first three lines may be left out, and so may `dns_endpoint` and `node_pools`; `autopilot` is true by
default. `state` is ENABLED, DISABLED or DESTROYED. `folder` keeps what is made of accounts, roles, policies, secrets,
repositories, builds and APIs; without it, they go with the emulator. `registry` is the folder of registry/, where built
images go. `services` are the APIs that are on from the start: all of them, unless it is given. What lies at or below a
name in `denied` answers 403, and so does what takes a permission of `denied_permissions`. `accounts` are service
accounts that are there from the start, beside `service_account`.
"""
