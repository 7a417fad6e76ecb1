"""Google Cloud Storage on a laptop: `python -m emulated_cloud.storage --root DIR [--bucket NAME]…`.

It speaks the JSON API (media, multipart and resumable uploads, caches, batches) and the part of the XML API that
clients use for multipart uploads and plain objects. routes.py leads from a path to its answer; store.py keeps buckets
and objects in files, uploads.py what is still being uploaded; resources.py renders them as the API does.

On disk, so that a folder can stand for a mounted bucket:

    ROOT/<bucket>/bucket.json            the bucket resource and its IAM policy
    ROOT/<bucket>/objects/<object name>  the bytes of an object
    ROOT/<bucket>/escaped/<sha256>       the bytes of an object whose name cannot be a path: see store.location_of
    ROOT/<bucket>/metadata/<sha256>.json what is known of an object; sha256 of its name
    ROOT/<bucket>/uploads/               uploads that are not complete
    ROOT/<bucket>/pending/               objects that are just being put in place

It differs from the service where it would cost much and teach nothing: no versions and no soft delete, no access
control (script a 403), and an object above 8 MiB gets an `md5Hash` only when its writer sent one.
"""
