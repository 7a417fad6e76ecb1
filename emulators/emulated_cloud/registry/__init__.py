"""A container registry: Docker's registry protocol, version 2 (`python -m emulated_cloud.registry --root DIR`).

It stands for every registry, as a pull-through mirror does: `vllm/vllm-openai` is Docker Hub's, `my-project/images/it`
an Artifact Registry's. A tag that is asked for is an image, made on the spot (images.py): an index of a small image for
linux/amd64 and one for linux/arm64, whose bytes follow from repository and tag alone. What was made stays below
`--root` and is found by its digest afterwards.

As at Docker Hub, a pull wants a token from the realm of the challenge, which anybody gets for a public repository, and
blobs come from another host, to which that token must not be sent: it answers 400. A bearer of the token in `--token`
(a service account's access token) needs no other, and alone reads the repositories that a `--private` matches. What an
`--absent` matches, a repository or `repository:tag`, is not there.

Different from the service on purpose: nothing can be pushed.
"""
