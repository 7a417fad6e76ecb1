"""Compute Engine, version 1: disks, machines, images, their operations and quotas, in one region.

What there is lies in a folder (store.py) and outlives the emulator, as buckets do. Machines do not: one that ran when
the emulator ended is TERMINATED when it comes back, as after a host error, unless its time was up meanwhile.

A machine runs its metadata's `startup-script`, unmodified, where this user is root and loop devices are to be had
(machine.py): with a root of its own, its disks at `/dev/disk/by-id/google-<device name>`, a metadata server at
`$GCE_METADATA_HOST`, and this machine's loopback network. Elsewhere, or with `run_scripts` false, serial port 1 shows
the lines of `script_output`. The configuration (google/config.py):

    "compute": {"folder": "/state/compute", "zones": ["us-central1-a", "us-central1-b"],
                "quotas": {"CPUS_ALL_REGIONS": 32, "SSD_TOTAL_GB": 500},
                "run_scripts": true, "script_output": ["a line", "another"]}

An operation does what a test scripts for the request that begins it (faults.py, action `outcome`, once the request is
accepted; `path` is matched against `/compute/v1/projects/…` without the query). Keys of `outcome`:

    {"seconds": 2}                                       it takes longer
    {"hold": true}                                       it goes on when another script replaces this one
    {"error": {"code": "ZONE_RESOURCE_POOL_EXHAUSTED"}}  it fails; other codes want a "message". An image that fails
                                                         stays, with the status FAILED
    {"expires": 5}                                       a machine's maxRunDuration is over then
    {"machine": {"boots": false}}                        it never starts: nothing on the serial port
    {"machine": {"script": "#!/bin/sh\\nexit 3"}}         another startup script, whatever the metadata says
    {"machine": {"output": ["a line"]}}                  no script at all: these lines
    {"machine": {"after": "half", "then": "killed"}}     when a line matches, the script is killed, `hangs`, or goes on
                                                         but is `silent` on the serial port

Different from the service on purpose: a machine has no boot disk's system, but the system of this one, read-only; a
machine that is stopped or deleted is switched off; disks keep their size; images have no archive, but the disk's bytes.
"""

from emulated_cloud.google.compute.service import Compute

__all__ = ["Compute"]
