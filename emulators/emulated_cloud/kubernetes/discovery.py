"""What resources a server has: those that can be listed and deleted, as discovery tells."""

from __future__ import annotations

from emulated_cloud.kubernetes.client import Client
from emulated_cloud.kubernetes.resources import Resource


async def discover(client: Client) -> list[Resource]:
    """Every resource that can be listed, watched and deleted, in its group's preferred version. Events are left out:
    they go by themselves."""
    core = await client.request("GET", "/api/v1")
    lists = [("", "v1", core)]
    for group in (await client.request("GET", "/apis"))["groups"]:
        version = group["preferredVersion"]["version"]
        answer = await client.request("GET", f"/apis/{group['name']}/{version}")
        lists.append((group["name"], version, answer))
    return [
        Resource(entry["name"], entry["kind"], group, version, entry["namespaced"])
        for group, version, answer in lists
        for entry in answer["resources"]
        if "/" not in entry["name"] and entry["name"] != "events" and {"list", "watch", "delete"} <= set(entry["verbs"])
    ]
