"""Repositories and their files as the hub's API shows them."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from emulated_cloud.hub.repository import Commit, File, Repository


def model_info(repository: Repository, commit: Commit, gated: bool, with_blobs: bool) -> dict[str, Any]:
    card = _card(repository, commit)
    licenses = [f"license:{card['license']}"] if card.get("license") else []
    return {
        "_id": hashlib.sha256(repository.repo_id.encode()).hexdigest()[:24],
        "id": repository.repo_id,
        "modelId": repository.repo_id,
        "author": repository.repo_id.split("/")[0],
        "sha": commit.sha,
        "private": False,
        "gated": "manual" if gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "tags": [*card.get("tags", []), *licenses],
        "cardData": card,
        "siblings": [_sibling(file, with_blobs) for file in commit.files.values()],
    }


def refs(repository: Repository) -> dict[str, Any]:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
        for name, sha in sorted(repository.branches().items())
    ]
    return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}


def user_info(name: str) -> dict[str, Any]:
    token = {"type": "access_token", "accessToken": {"displayName": "emulated", "role": "read"}}
    return {"type": "user", "id": name, "name": name, "orgs": [], "auth": token}


def etag(file: File) -> str:
    return f'"{file.sha256 if file.lfs else file.blob_id}"'


def _sibling(file: File, with_blobs: bool) -> dict[str, Any]:
    """A file in a model's info; `blobs` adds what `files_metadata=True` asks for."""
    sibling: dict[str, Any] = {"rfilename": file.path}
    if with_blobs:
        sibling |= {"blobId": file.blob_id, "size": file.size}
        if file.lfs:
            sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return sibling


def tree_entries(commit: Commit) -> dict[str, dict[str, Any]]:
    """Files and folders of a commit as the tree API lists them, by path."""
    entries: dict[str, dict[str, Any]] = {}
    for file in commit.files.values():
        parts = file.path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            oid = hashlib.sha1(f"{commit.sha} {folder}".encode(), usedforsecurity=False).hexdigest()
            entries.setdefault(folder, {"type": "directory", "oid": oid, "size": 0, "path": folder})
        entries[file.path] = {"type": "file", "oid": file.blob_id, "size": file.size, "path": file.path}
        if file.lfs:
            entries[file.path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return entries


def _card(repository: Repository, commit: Commit) -> dict[str, Any]:
    """The YAML at the top of README.md: the model card's data."""
    import yaml

    if "README.md" not in commit.files:
        return {}
    text = repository.object_path(commit.files["README.md"]).read_text(encoding="utf-8")
    front_matter = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return (yaml.safe_load(front_matter[1]) or {}) if front_matter else {}
