"""Cloud Build, version 1: builds of a region, whose source lies in a bucket and whose images go to Artifact Registry.

A build fetches its source as its service account, which has to have been given what the real one needs: to read the
bucket, to write to the repository, to write to Cloud Logging (policies.py; the bucket's own policy). Of its steps, a
`docker build` is read: its Dockerfile has to be there, and every file that the Dockerfile copies; what it RUNs is named
in the log and not run. With `command` in the configuration (google/config.py) that command is run in the source's
folder after the steps, with `environment`, and the build fails when it does. Then an image for each name in `images` is
there, of one layer: the source. So another source is another digest, and the same is the same.

    "cloudbuild": {"storage": "http://127.0.0.1:1", "command": ["make", "check"], "environment": {"PATH": "/usr/bin"}}

A build does what a test scripts for the request that makes it (faults.py, action `outcome`). Keys of `outcome`, which
counts as consumed when it happens:

    {"hold": true}                                  it stays WORKING until another script replaces this one
    {"status": "FAILURE", "log": ["…"], "type": "USER_BUILD_STEP"}      it prints that, and ends so

Builds are kept in the project's folder; of one that ran when the emulator ended, the next one says INTERNAL_ERROR.

Different from the service on purpose: no triggers, no private pools, no other sources than objects, no artifacts but
images, no approval; steps run nothing but `command`.
"""

from emulated_cloud.google.cloudbuild.service import CloudBuild

__all__ = ["CloudBuild"]
