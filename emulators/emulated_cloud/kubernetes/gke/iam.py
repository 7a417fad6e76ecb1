"""May a Kubernetes service account read a bucket? Workload Identity Federation for GKE, by the storage emulator."""

from __future__ import annotations

from urllib.parse import quote

import aiohttp

from emulated_cloud.kubernetes.gke.config import Project

ROLES_THAT_READ = {
    "roles/storage.objectViewer",
    "roles/storage.objectUser",
    "roles/storage.objectAdmin",
    "roles/storage.admin",
    "roles/storage.legacyBucketReader",
}


class NotReadable(Exception):
    """A gRPC code, and why in the words of Cloud Storage's client."""

    def __init__(self, code: str, why: str):
        super().__init__(why)
        self.code = code


def principal(project: Project, namespace: str, account: str) -> str:
    """The service account as IAM names it."""
    pool = f"projects/{project.number}/locations/global/workloadIdentityPools/{project.id}.svc.id.goog"
    return f"principal://iam.googleapis.com/{pool}/subject/ns/{namespace}/sa/{account}"


async def check_reader(endpoint: str, bucket: str, principal: str) -> None:
    """Raises NotReadable unless the bucket's IAM policy gives the principal a role that reads objects."""
    timeout = aiohttp.ClientTimeout(total=30)
    url = f"{endpoint}/storage/v1/b/{quote(bucket, safe='')}/iam"
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
            policy = await answer.json(content_type=None) if answer.status == 200 else {}
            status = answer.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise NotReadable("Internal", str(error)) from error
    if status == 404:
        raise NotReadable("NotFound", "storage: bucket doesn't exist")
    allowed = status == 200 and any(
        binding["role"] in ROLES_THAT_READ and principal in binding.get("members", [])
        for binding in policy.get("bindings", [])
    )
    if not allowed:
        raise NotReadable(
            "PermissionDenied",
            f"googleapi: Error 403: {principal.removeprefix('principal://iam.googleapis.com/')} does not have "
            "storage.objects.list access to the Google Cloud Storage bucket. Permission 'storage.objects.list' "
            "denied on resource (or it may not exist)., forbidden",
        )
