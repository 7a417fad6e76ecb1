"""Machines of the emulated Compute Engine: the startup script really runs, on a disk that really is one.

These want root and loop devices; the rest of Compute Engine is in test_compute.py.
"""

from __future__ import annotations

import signal
import subprocess
import textwrap
from pathlib import Path

import pytest
from emulated_cloud.google.compute import boot
from google.api_core import exceptions

from tests.contract.compute_service import ZONE, Compute, compute, new_compute, until

__all__ = ["compute", "new_compute"]

pytestmark = pytest.mark.skipif(not boot.is_possible(), reason="needs root and loop devices")

SCRIPT = textwrap.dedent("""\
    #!/usr/bin/python3
    import os, subprocess, urllib.request

    def ask(path):
        url = f"http://{os.environ['GCE_METADATA_HOST']}/computeMetadata/v1/{path}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        return urllib.request.urlopen(request).read().decode()

    device = "/dev/disk/by-id/google-data"
    print("told", ask("instance/attributes/what-to-do"), flush=True)
    print("I am", ask("instance/service-accounts/default/email"), ask("instance/name"), flush=True)
    assert "access_token" in ask("instance/service-accounts/default/token")
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", device], check=True)
    os.makedirs("/mnt/disks/layers")
    subprocess.run(["mount", device, "/mnt/disks/layers"], check=True)
    with open("/mnt/disks/layers/greeting", "w") as file:
        file.write("hello from the machine")
    print("half", flush=True)
    subprocess.run(["umount", "/mnt/disks/layers"], check=True)
    subprocess.run(["e2fsck", "-fn", device], check=True)
    print("all done", flush=True)
    """)


IN_THE_MIDDLE = textwrap.dedent("""\
    #!/bin/sh
    mkfs.ext4 -q -F /dev/disk/by-id/google-data
    mkdir -p /mnt/layers
    mount /dev/disk/by-id/google-data /mnt/layers
    echo in the middle
    (sleep 1000) &
    sleep 1000
    """)


def left(compute: Compute) -> list[str]:
    """Loop devices over the emulator's files, and processes of its machines."""
    attached = subprocess.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True)
    running = subprocess.run(["pgrep", "--list-full", "--full", "compute/boot.py"], capture_output=True)
    return [
        *(line for line in attached.stdout.decode().splitlines() if str(compute.folder) in line),
        *(line for line in running.stdout.decode().splitlines() if str(compute.folder) in line),
    ]


def test_from_a_script_to_an_image(compute):
    compute.do(compute.insert("builder", script=SCRIPT, metadata={"what-to-do": "write"}))
    said = compute.wait_for_serial("builder", "startup-script exit status 0")
    assert "startup-script: told write\r\n" in said
    assert "startup-script: I am builder@demo.iam.gserviceaccount.com builder\r\n" in said
    assert "startup-script: all done\r\n" in said
    with pytest.raises(exceptions.BadRequest, match="already being used by 'projects/demo/zones/us-central1-a/inst"):
        compute.images.insert_unary(project="demo", image_resource=image("nodes-1", "builder-data"))

    there = {"project": "demo", "zone": ZONE, "instance": "builder"}
    compute.do(compute.instances.stop_unary(**there))
    assert compute.instances.get(**there).status == "TERMINATED"
    with pytest.raises(exceptions.BadRequest, match="is not ready"):
        compute.serial("builder")
    compute.do(compute.instances.set_disk_auto_delete_unary({**there, "device_name": "data", "auto_delete": False}))
    compute.do(compute.instances.delete_unary(**there))
    assert {"disks/builder-data"} == {each for each in compute.there() if "builder" in each}
    compute.do(compute.images.insert_unary(project="demo", image_resource=image("nodes-1", "builder-data")))
    compute.do(compute.disks.delete_unary(project="demo", zone=ZONE, disk="builder-data"))

    found = compute.images.get(project="demo", image="nodes-1")
    assert (found.status, found.disk_size_gb, dict(found.labels)) == ("READY", 1, {"made-by": "test"})
    raw = compute.folder / "compute" / "global" / "images" / "nodes-1.raw"
    read = subprocess.run(["debugfs", "-R", "cat /greeting", raw], capture_output=True, check=True)
    assert read.stdout == b"hello from the machine"
    assert subprocess.run(["e2fsck", "-fn", raw], capture_output=True).returncode == 0
    assert left(compute) == []


def image(name: str, disk: str) -> dict:
    source = f"projects/demo/zones/{ZONE}/disks/{disk}"
    return {"name": name, "source_disk": source, "labels": {"made-by": "test"}}


def test_a_machine_sees_nothing_of_the_one_it_runs_on(compute, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    script = f"""#!/bin/sh
        exec 2>&1
        test -e {secret} && echo SEEN
        touch /usr/here /etc/here && echo WRITTEN
        echo "$$ $(id -u) $(ls /dev/disk/by-id) $(env | grep -c TOKEN)"
        echo x > /var/tmp/here && echo kept for now
        """
    compute.do(compute.insert("alone", script=script))
    said = compute.wait_for_serial("alone", "Finished running startup scripts.")
    assert "startup-script: 2 0 google-data 0\r\n" in said
    assert "startup-script: kept for now\r\n" in said
    assert "SEEN" not in said
    assert "WRITTEN" not in said
    assert not Path("/var/tmp/here").exists()


def test_a_machine_without_a_service_account_has_no_token(compute):
    script = """#!/bin/sh
        url=http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/token
        /usr/bin/python3 -c "import sys, urllib.request as r
        r.urlopen(r.Request('$url', headers={'Metadata-Flavor': 'Google'}))" 2>&1 | grep HTTPError
        """.replace("\n        r.", "\nr.")
    compute.do(compute.insert("nobody", script=script, service_accounts=[]))
    assert "HTTP Error 404" in compute.wait_for_serial("nobody", "Finished running startup scripts.")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\necho well; exit 3\n", 'Script "startup-script" failed with error: exit status 3'),
        ("#!/bin/sh\nkill -9 $$\n", "failed with error: exit status 137"),
        ("#!/no/such/interpreter\n", "startup-script: startup-script: No such file or directory"),
        ("#!/bin/sh\nprintf 'kr\\303\\266te \\377\\n'\n", "startup-script: kr\u00f6te \ufffd\r\n"),
    ],
    ids=["exit", "signal", "interpreter", "bytes"],
)
def test_a_script_that_goes_wrong(compute, script, words, request):
    name = f"wrong-{request.node.callspec.id}"
    compute.do(compute.insert(name, script=script))
    assert words in compute.wait_for_serial(name, "Finished running startup scripts.")


def test_what_a_test_may_do_to_a_machine(compute):
    """Each with a script that would say "half" and "all" if it were left alone."""
    script = "#!/bin/sh\necho begun; echo half; sleep 0.3; echo all\n"
    path = f"/zones/{ZONE}/instances$"
    done = "Finished running startup scripts."
    for name, what, in_the_end in (
        ("fault-boots", {"boots": False}, ""),
        ("fault-script", {"script": "#!/bin/sh\necho other"}, "startup-script: other\r\n"),
        ("fault-killed", {"after": "half", "then": "killed"}, "failed with error: signal: SIGKILL"),
        ("fault-hangs", {"after": "half", "then": "hangs"}, "startup-script: half\r\n"),
        ("fault-silent", {"after": "half", "then": "silent"}, "startup-script: half\r\n"),
    ):
        compute.script(("POST", path, {"machine": what}))
        compute.do(compute.insert(name, script=script))
        assert compute.consumed() == [1]
        said = compute.wait_for_serial(name, in_the_end) if in_the_end else ""
        assert "all" not in said
    # Those that end would have, long ago: a machine that is left alone does.
    compute.do(compute.insert("fault-none", script=script))
    assert "startup-script: all\r\n" in compute.wait_for_serial("fault-none", done)
    assert done in compute.wait_for_serial("fault-killed", done)
    assert compute.serial("fault-boots").contents == ""
    for name in ("fault-hangs", "fault-silent"):
        assert compute.serial(name).contents.endswith("startup-script: half\r\n")
        compute.do(compute.instances.delete_unary(project="demo", zone=ZONE, instance=name))
    assert left(compute) == []


@pytest.mark.parametrize("end", ["stop", "delete", "expire", "SIGTERM", "SIGKILL"])
def test_a_machine_that_ends_in_the_middle_leaves_nothing(new_compute, end):
    compute = new_compute()
    there = {"project": "demo", "zone": ZONE, "instance": "worker"}
    limit = {"max_run_duration": {"seconds": 3600}, "instance_termination_action": "DELETE"}
    if end == "expire":
        compute.script(("POST", "/instances$", {"expires": 0.5}))
    compute.do(compute.insert("worker", script=IN_THE_MIDDLE, scheduling=limit))
    if end != "expire":
        compute.wait_for_serial("worker", "in the middle")
        assert len(left(compute)) == 3, "a loop device and the machine's two processes"
    match end:
        case "stop":
            compute.do(compute.instances.stop_unary(**there))
            assert compute.there() == {"instances/worker", "disks/worker", "disks/worker-data"}
            compute.do(compute.instances.set_disk_auto_delete_unary({**there, "device_name": "data"}))
            compute.do(compute.instances.delete_unary(**there))
            compute.do(compute.images.insert_unary(project="demo", image_resource=image("half", "worker-data")))
        case "delete":
            compute.do(compute.instances.delete_unary(**there))
            assert compute.there() == set()
        case "expire":
            until(lambda: not compute.there())
        case _:
            compute.process.popen.send_signal(getattr(signal, end))
            compute.process.popen.wait(120)
            until(lambda: not left(compute))
            compute.stop()
            compute.start()
            assert compute.instances.get(**there).status == "TERMINATED"
            compute.do(compute.instances.delete_unary(**there))
            assert compute.there() == set()
    assert left(compute) == []


def test_loop_devices_of_another_time_are_swept(new_compute):
    compute = new_compute()
    compute.do(compute.insert("old", script="#!/bin/sh\n"))
    compute.stop()
    file = compute.folder / "compute" / "zones" / ZONE / "disks" / "old-data.raw"
    subprocess.run(["losetup", "--find", file], check=True)
    assert left(compute) != []
    compute.start()
    assert left(compute) == []
