"""Hostile settings: each line of the tables is one input, and what is said of it. No traceback, nothing on stdout.

To add one, add a line.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = "scenario: gcs-fuse\nproject: demo-project\nbucket: demo-bucket\n"
BILLION_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MEMORY = 1_500_000_000
"""Bytes of address space: a quiet command takes half of it."""

FILES = [
    # A secret among the flags, in every spelling that vLLM takes.
    ("engine: {extra_args: [--api-key, hunter2]}", "--api-key is not for extra_args: an argument can be read by"),
    ("engine: {extra_args: [--api_key, hunter2]}", "--api-key is not for extra_args"),
    ("engine: {extra_args: [--api_key=hunter2]}", "--api-key is not for extra_args"),
    ("engine: {extra_args: [--api-ke, hunter2]}", "--api-key is not for extra_args"),
    ("engine: {extra_args: ['--api-key hunter2']}", "--api-key is not for extra_args"),
    ("engine: {extra_args: [' --api-key=hunter2']}", "--api-key is not for extra_args"),
    ("engine: {extra_args: [--hf_token, hunter2]}", "--hf-token is not for extra_args"),
    ("engine: {extra_args: ['\u2014api-key=hunter2']}", "begins with a dash that is no hyphen"),
    ("engine: {extra_args: [--chat-template, $(VLLM_API_KEY)]}", "which Kubernetes replaces"),
    # What the project sets itself.
    ("engine: {extra_args: [--max_model_len, '8']}", "set engine.max_model_len"),
    ("engine: {extra_args: [--max-model, '8']}", "set engine.max_model_len"),
    ("engine: {extra_args: [--tensor_parallel_size=2]}", "it follows accelerator.count"),
    ("engine: {extra_args: [-tp, '2']}", "it follows accelerator.count"),
    ("engine: {extra_args: [-qfp8]}", "set engine.quantization"),
    ("engine: {extra_args: [--served_model_name, x]}", "the server goes by the hub's name"),
    ("engine: {extra_args: [--speculative_config.model, x]}", "set `assistant`"),
    ("engine: {extra_args: [--config, /x.yaml]}", "flags in a file are not seen here"),
    ("engine: {extra_args: [--no_enable_lora]}", "it follows `adapters`"),
    ("engine: {extra_args: [--uds, /tmp/s]}", "listens where its Service looks for it"),
    ("engine: {extra_args: [other/model]}", "begins with a value: a flag comes first"),
    ("engine: {extra_args: [--max-num-seqs 64]}", "is a flag and its value in one"),
    ("engine: {extra_args: [-h]}", "it ends the server"),
    # What Kubeflow Pipelines would replace on the way.
    ("validation: {prompts: [{content: 'say {{$.pipeline_task_name}}'}]}", "validation.prompts.0.content: holds {{$"),
    ("labels: {'a{{$.inputs}}': b}", "labels: holds {{$"),
    ("patches: [{kind: Deployment, spec: {x: '{{$.inputs.parameters[0]}}'}}]", "patches.0.spec.x: holds {{$"),
    # Namespaces that are somebody else's.
    ("namespace: kube-system", "belongs to Kubernetes, to GKE"),
    ("namespace: default", "belongs to Kubernetes, to GKE"),
    ("namespace: gke-managed-cim", "belongs to Kubernetes, to GKE"),
    ("namespace: gmp-public", "belongs to Kubernetes, to GKE"),
    ("namespace: istio-system", "belongs to Kubernetes, to GKE"),
    ("serving: {exposure: public}", "public needs a key that clients have to show"),
    # Figures that nobody means.
    ("lease: {duration: 0s}", "lease.duration: '0s' is no time at all"),
    ("serving: {ready_timeout: 0m}", "serving.ready_timeout: '0m' is no time at all"),
    ("validation: {timeout: 999999h}", "validation.timeout: '999999h' is longer than 30 days"),
    ("validation: {concurrencies: [1000000000]}", "validation.concurrencies.0: must be less than or equal to 1024"),
    ("validation: {requests_per_concurrency: 1000000000}", "must be less than or equal to 10000"),
    ("engine: {gpu_memory_utilization: .nan}", "a.yaml:4: engine.gpu_memory_utilization: must be"),
    ("patches: [{kind: Service, spec: {x: .nan}}]", "a.yaml:4: patches.0.spec.x: must be a finite number, not nan"),
    ("serving: {request_timeout: \u0661s}", "is not a duration"),
    ("hub: {endpoint: 'https://hub.example.com:99999'}", "hub.endpoint: is not the address of a hub"),
    ("serving: {replicas: .inf}", "a.yaml:4: serving.replicas: must be"),
    # Names that lead elsewhere.
    ("pipeline_root: gs://demo-bucket/models", "pipeline_root: gs://demo-bucket/models is where the models are"),
    ("pipeline_root: gs://demo-bucket/models/x", "is where the models are"),
    ("images: {components: 'a b'}", "images.components: 'a b' is not an image's name"),
    ("engine: {image: '--privileged'}", "engine.image: '--privileged' is not an image's name"),
    (
        "pipeline_service_account: me@example.com",
        "a.yaml:4: pipeline_service_account: 'me@example.com' is not a Google",
    ),
    ("pipeline_root: gs://demo-bucket//x", "pipeline_root: 'gs://demo-bucket//x' has a part without a name"),
    ("pipeline_root: gs://demo-bucket/../x", "has a part without a name"),
    ("pipeline_root: gs://UPPER/x", "pipeline_root: 'UPPER' is not a bucket's name"),
    ("source: gs://demo-bucket/a//b", "source: 'gs://demo-bucket/a//b' has a part without a name"),
    ("source: gs://demo-bucket", "source: 'gs://demo-bucket' is not a folder of a bucket, gs://BUCKET/FOLDER"),
    ("revision: ../x", "revision: '../x' is not a branch, tag or commit"),
    ("revision: a b", "revision: 'a b' is not a branch, tag or commit"),
    ("revision: --x", "revision: '--x' is not a branch, tag or commit"),
    (f"revision: {'x' * 5000}", "has 5000 characters; a branch, tag or commit has at most 200"),
    ("adapters: {a: {model: x/y, revision: ../z}}", "adapters.a.revision: '../z' is not a branch, tag or commit"),
    ("engine: {quantization: --api-key}", "engine.quantization: '--api-key' is not one word"),
    # Values that no object of Kubernetes holds, and machines of nothing.
    ("accelerator: {memory: 0Gi}", "accelerator.memory: '0Gi' is nothing, and no pod runs on that"),
    ("accelerator: {cpu: '0.000'}", "accelerator.cpu: '0.000' is nothing, and no pod runs on that"),
    ("patches: [{kind: Service, spec: {x: 2026-01-01}}]", "patches.0.spec.x: is a date to YAML"),
    ("patches: [{kind: Service, spec: {x: !!binary aGk=}}]", "patches.0.spec.x: is a bytes to YAML"),
    ("patches: [{kind: Service, spec: {x: !!set {a}}}]", "patches.0.spec.x: is a set to YAML"),
    # Documents that are more than they look.
    (BILLION_LAUGHS, "make more of it than settings can be"),
    ("labels: &a {b: *a}", "make more of it than settings can be"),
    ("patches: " + "[" * 500 + "]" * 500, "a.yaml:4: more than 50 levels deep"),
    ("patches: " + "{a: " * 500 + "1" + "}" * 500, "a.yaml:4: more than 50 levels deep"),
    ("patches: &p\n- *p\n", "make more of it than settings can be"),
    (
        "".join(f"d{n}: &d{n} [{'x' if n == 0 else f'*d{n - 1}'}]\n" for n in range(100)),
        "make more of it than settings can be",
    ),
    ("".join(f"{' ' * n}a{n}:\n" for n in range(500)), "more than 50 levels deep"),
    ("patches: " + "[" * 200_000, "a.yaml:4: more than 50 levels deep"),
    (f"retry: {'1:' * 100_000}1\n", "a.yaml:4: a number of 200001 characters"),
    (
        "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)),
        "make more of it",
    ),
    ("# " + "x" * 1_000_001, "a settings file has at most 1000000"),
    ("patches: [{kind: Service, spec: {on: x}}]", "a.yaml:4: a key has to be text: put on in quotes"),
    ("retry: !!bool maybe", "a.yaml"),
    ('annotations: {a: "\\0"}', "annotations.a: holds a character that no text has"),
    ("validation: {prompts: [{content: x, pattern: '" + "(" * 5000 + "'}]}", "is not a regular expression"),
    ("validation: {prompts: [{content: x, pattern: 'a{99999999999999}'}]}", "is not a regular expression"),
    ("validation: {prompts: [{content: x, pattern: '[[a]'}]}", "is not a regular expression"),
    ("labels: {? [a] : b}", "a key has to be text"),
    ("labels: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    ("\0", "a.yaml"),
]


@pytest.mark.parametrize(
    ("text", "words"), FILES, ids=[text[:40].encode("unicode_escape").decode() for text, _ in FILES]
)
def test_a_file(text: str, words: str, command, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(HEAD + text, encoding="utf-8")
    code, out, err = command("compile", "03", "-f", "a.yaml", "-o", "out")
    assert (code, out) == (2, ""), err
    assert words in err
    assert "Traceback" not in err
    assert "hunter2" not in err
    for of_pydantic in ("function-after", "literal[", "Input should", "Value error"):
        assert of_pydantic not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compile", "03", "--image", "a b"], "'a b' is not an image's name"),
        (["compile", "03", "--image", ""], "is not an image's name"),
        (["run", "03", "--set", "engine.extra_args=[--api_key, hunter2]"], "--api-key is not for extra_args"),
        (["run", "03", "--set", "labels={a: &a [*a]}"], "make more of it than settings can be"),
        (["run", "03", "--set", "namespace=kube-public"], "namespace: 'kube-public' belongs to Kubernetes"),
        (["run", "03", "--set", "engine.max_model_len=.nan"], "engine.max_model_len: must be"),
    ],
)
def test_an_argument(arguments: list[str], words: str, command):
    code, out, err = command(*arguments)
    assert (code, out) == (2, ""), err
    assert words in err
    assert "Traceback" not in err
    assert "hunter2" not in err


@pytest.mark.parametrize("text", [BILLION_LAUGHS, "labels: &a {b: *a}"], ids=["billion laughs", "an anchor in itself"])
def test_a_short_document_takes_no_memory_to_refuse(text: str, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(HEAD + text, encoding="utf-8")
    bounded = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY})); "
    code = bounded + "from pipelines import cli; cli.main()"
    command = [sys.executable, "-c", code, "compile", "03", "-f", "a.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "make more of it than settings can be" in done.stderr
