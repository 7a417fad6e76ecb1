"""What resources a server has: those that can be listed and deleted, as discovery tells."""

from __future__ import annotations

from emulated_cloud.kubernetes.client import ApiError, Client
from emulated_cloud.kubernetes.resources import Resource


async def discover(client: Client) -> list[Resource]:
    """Every resource that can be listed, watched and deleted, in its group's preferred version. Events are left out:
    they go by themselves, and so are groups whose server is away: what it answers for is not in this server's store."""
    core = await client.request("GET", "/api/v1")
    lists = [("", "v1", core)]
    for group in (await client.request("GET", "/apis"))["groups"]:
        version = group["preferredVersion"]["version"]
        try:
            answer = await client.request("GET", f"/apis/{group['name']}/{version}")
        except ApiError as error:
            if error.status != 503:
                raise
            continue
        lists.append((group["name"], version, answer))
    return [
        Resource(entry["name"], entry["kind"], group, version, entry["namespaced"])
        for group, version, answer in lists
        for entry in answer["resources"]
        if "/" not in entry["name"] and entry["name"] != "events" and {"list", "watch", "delete"} <= set(entry["verbs"])
    ]
