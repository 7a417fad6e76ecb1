"""What a container's process is started with: expansion, rewritten paths and addresses, service variables, logs."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from emulated_cloud.kubernetes.kubelet.environment import Rewriter, expand, service_variables
from emulated_cloud.kubernetes.kubelet.fields import FieldError, field_value, resource_value
from emulated_cloud.kubernetes.kubelet.logs import LogFile, last_words, latest_log, log_path, render
from emulated_cloud.kubernetes.kubelet.probes import Probe, ProbeFailed
from emulated_cloud.kubernetes.kubelet.process import StartError, session_memory, start


def test_references_expand_and_dollars_escape():
    variables = {"A": "1", "B": "2"}
    assert expand("$(A)-$(B)-$(C)-$$(A)-$A", variables) == "1-2-$(C)-$(A)-$A"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/model", "/pods/volumes/model"),
        ("--model=/model", "--model=/pods/volumes/model"),
        ("/model/config.json", "/pods/volumes/model/config.json"),
        ("/model:/cache/x", "/pods/volumes/model:/pods/volumes/cache/x"),
        ('{"path": "/model"}', '{"path": "/pods/volumes/model"}'),
        ("/models", "/models"),
        ("/model-b", "/model-b"),
        ("gs://bucket/model", "gs://bucket/model"),
        ("http://host/model", "http://host/model"),
        ("/other/model", "/other/model"),
        ("/model/deep", "/pods/volumes/deep"),
        ("--host=0.0.0.0", "--host=127.64.0.2"),
        ("0.0.0.0:8000", "127.64.0.2:8000"),
        ("10.0.0.0.0", "10.0.0.0.0"),
        ("::", "127.64.0.2"),
        ("--host=::", "--host=127.64.0.2"),
        ("[::]:8000", "127.64.0.2:8000"),
        ("a::b", "a::b"),
    ],
)
def test_paths_and_addresses_are_rewritten_whole(text, expected):
    mounts = {
        "/model": Path("/pods/volumes/model"),
        "/cache/": Path("/pods/volumes/cache"),
        "/model/deep": Path("/pods/volumes/deep"),
    }
    assert Rewriter(mounts, "127.64.0.2")(text) == expected


def test_service_variables_have_the_form_of_links():
    service = {
        "metadata": {"name": "my-vllm"},
        "spec": {"clusterIP": "10.0.0.7", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    }
    headless = {"metadata": {"name": "h"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}
    variables = service_variables([service, headless])
    assert variables["MY_VLLM_SERVICE_HOST"] == "10.0.0.7"
    assert variables["MY_VLLM_PORT"] == "tcp://10.0.0.7:80"
    assert variables["MY_VLLM_SERVICE_PORT_HTTP"] == "80"
    assert variables["MY_VLLM_PORT_80_TCP_ADDR"] == "10.0.0.7"
    assert not [name for name in variables if name.startswith("H_")]


def test_the_downward_api():
    pod = {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a/b": "1"}, "annotations": {"x": "y"}},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "1Gi", "cpu": "250m"}}}]},
    }
    assert field_value(pod, "metadata.labels['a/b']") == "1"
    assert field_value(pod, "metadata.annotations") == 'x="y"'
    assert field_value(pod, "status.podIP", pod_ip="1.2.3.4") == "1.2.3.4"
    assert resource_value(pod, "c", {"resource": "limits.memory", "divisor": "1Mi"}) == "1024"
    assert resource_value(pod, "c", {"resource": "limits.cpu"}) == "1", "rounded up"
    with pytest.raises(FieldError, match=r"spec\.foo"):
        field_value(pod, "spec.foo")


def test_logs_are_written_in_lines_and_read_back(tmp_path):
    path = log_path(tmp_path, "uid", "main", 0)
    log = LogFile(path)
    log.write(b"one\ntw")
    log.write(b"o\nno newline at the end")
    log.write(b"")
    lines = path.read_bytes().splitlines(keepends=True)
    assert [render(line, False) for line in lines] == [b"one\n", b"two\n", b"no newline at the end\n"]
    assert render(lines[0], True).split(b" ", 1)[1] == b"one\n"
    LogFile(log_path(tmp_path, "uid", "main", 1)).write(b"")
    assert latest_log(tmp_path, "uid", "main") == log_path(tmp_path, "uid", "main", 1)
    assert latest_log(tmp_path, "uid", "main", previous=True) == path
    assert latest_log(tmp_path, "uid", "other") is None
    assert last_words(path, lines=2) == "two\nno newline at the end\n"


def test_a_long_line_is_written_in_parts_and_read_whole(tmp_path):
    log = LogFile(tmp_path / "log")
    log.write(b"x" * 40000 + b"\n")
    log.write(b"")
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    assert b"".join(render(line, False) for line in lines) == b"x" * 40000 + b"\n"


async def _run(argv, **env):
    output = []
    process = await start(argv, {"PATH": "/usr/bin:/bin", **env}, Path("/"), output.append)
    return process, output


def test_a_process_is_waited_for_and_its_output_is_complete():
    async def scenario():
        process, output = await _run(["sh", "-c", "echo $A; echo err >&2; exit 3"], A="hello")
        assert await process.exited == 3
        assert b"".join(output) == b"hello\nerr\n"
        assert output[-1] == b"", "the end is told"

    asyncio.run(scenario())


def test_a_process_that_ignores_sigterm_is_killed_with_its_children():
    async def scenario():
        process, output = await _run(["sh", "-c", "trap '' TERM; sleep 60 & echo $!; while :; do sleep 60; done"])
        while not output:
            await asyncio.sleep(0.01)
        child = int(b"".join(output))
        assert await process.stop(0.1) == 128 + signal.SIGKILL
        for _ in range(3000):
            state = Path(f"/proc/{child}/stat")
            if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
            await asyncio.sleep(0.02)
        pytest.fail("the child lives on")

    asyncio.run(scenario())


def test_a_command_that_is_not_there_cannot_start():
    async def scenario():
        with pytest.raises(StartError, match=r'exec: "no-such-command": executable file not found in \$PATH'):
            await _run(["no-such-command"])

    asyncio.run(scenario())


def test_memory_is_summed_over_a_session():
    async def scenario():
        script = "import time; x = b'1' * 60_000_000; print(len(x), flush=True); time.sleep(60)"
        process, output = await _run(["python3", "-c", script])
        while not output:
            await asyncio.sleep(0.01)
        assert 60_000_000 < session_memory({process.pid})[process.pid] < 200_000_000
        await process.stop(0)

    asyncio.run(scenario())


def _probe(spec, port):
    async def no_command(_argv, _timeout):
        return 0, ""

    return Probe({**spec, "timeoutSeconds": 0.3}, "127.0.0.1", {"http": port}, no_command)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", None),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "HTTP probe failed with statuscode: 503"),
        (b"", "EOF"),
    ],
)
def test_http_probes_judge_by_status(answer, words):
    async def scenario():
        async def handle(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        probe = _probe({"httpGet": {"path": "health", "port": "http"}}, server.sockets[0].getsockname()[1])
        if words:
            with pytest.raises(ProbeFailed, match=words):
                await probe._once()
        else:
            await probe._once()
        server.close()
        await server.wait_closed()

    asyncio.run(scenario())


def test_probes_tell_when_thresholds_are_reached():
    async def scenario():
        results, failures = [], []

        async def command(argv, _timeout):
            return (0, "") if len(failures) >= 2 else (1, "not yet")

        probe = Probe(
            {"exec": {"command": ["x"]}, "periodSeconds": 0.01, "failureThreshold": 2, "successThreshold": 2},
            "127.0.0.1",
            {},
            command,
            failures.append,
        )

        def on_result(success, words):
            results.append((success, words))
            return not success

        await asyncio.wait_for(probe.watch(on_result), 120)
        assert failures == ["not yet", "not yet"]
        assert results == [(False, "not yet"), (True, "")]

    asyncio.run(scenario())


def test_a_refused_connection_is_told_in_the_kubelets_words():
    async def scenario():
        server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        with pytest.raises(
            ProbeFailed, match=rf'Get "http://127\.0\.0\.1:{port}/health": dial tcp .*connection refused'
        ):
            await _probe({"httpGet": {"path": "/health", "port": port}}, port)._once()

    asyncio.run(scenario())
