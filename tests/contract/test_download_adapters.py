"""Adapters and an assistant beside the model: what is taken of each, where it lies, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.download_weights.verification import verify
from components.resolve_model.step import in_bucket, look_up, name_release
from serving.clients import storage
from serving.errors import ReleaseError, RequestError
from serving.settings import Settings
from serving.weights import checkpoint, manifest, repositories
from serving.weights.release import Release
from tests.contract.transfer_site import MIB, Site, _site, content, folder, model, site, write_release, write_shard

__all__ = ["_site", "folder", "model", "site"]

CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


def write_adapter(folder: Path, seed: int = 1, **config: Any) -> None:
    """An adapter as PEFT writes one, and what a trainer leaves beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    halves = [f"base_model.model.tensor.lora_{side}.weight" for side in "AB"]  # The model's are tensor.1, tensor.2.
    write_shard(folder / "adapter_model.safetensors", halves[0], 5 * MIB, seed, halves[1])
    (folder / "README.md").write_text("# An adapter\n")
    (folder / "LICENSE").write_text("terms")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "adapter_model.bin").write_bytes(b"a pickle")


class Release3:
    """A model, an adapter and an assistant on the hub."""

    def __init__(self, site: Site, model: str, root: Path):
        self.site, self.model, self.root = site, model, root
        self.ko, self.draft = f"{model}-ko", f"{model}-draft"
        write_release(root / "base")
        write_adapter(root / "ko", base_model_name_or_path=model)
        write_release(root / "draft", shards=1, seed=7)
        (root / "draft" / "config.json").write_text(json.dumps({"architectures": ["Gemma4AssistantForCausalLM"]}))
        self.commits = {
            "base": site.commit(model, root / "base"),
            "ko": self.commit_adapter(),
            "assistant": site.commit(self.draft, root / "draft"),
        }

    def commit_adapter(self) -> str:
        return self.site.commit(self.ko, self.root / "ko")

    def settings(self, **changes: Any) -> Settings:
        values = {
            "adapters": {"ko": {"model": self.ko}},
            "assistant": {"model": self.draft, "num_speculative_tokens": 4},
        }
        return self.site.settings(self.model, **{**values, **changes})

    def pinned(self) -> Settings:
        return self.settings(
            revision=self.commits["base"],
            adapters={"ko": {"model": self.ko, "revision": self.commits["ko"]}},
            assistant={"model": self.draft, "revision": self.commits["assistant"], "num_speculative_tokens": 4},
        )


@pytest.fixture
def three(site: Site, model: str, tmp_path: Path) -> Release3:
    return Release3(site, model, tmp_path)


def resolved(settings: Settings) -> Release:
    return name_release(settings, "run-1", look_up(settings), live="")


def test_each_lies_in_its_folder_pinned_and_named_in_the_manifest(site: Site, three: Release3):
    settings = three.settings()
    release = resolved(settings)
    assert release.commit == three.commits["base"]
    assert release.commits == {role: three.commits[role] for role in ("ko", "assistant")}
    assert release.max_lora_rank == 8
    sent = site.bring(settings, release)
    known, _ = manifest.read(release.weights_uri)
    assert known is not None
    assert {each.role: (each.model, each.commit) for each in known.repositories} == {
        "base": (three.model, three.commits["base"]),
        "ko": (three.ko, three.commits["ko"]),
        "assistant": (three.draft, three.commits["assistant"]),
    }
    paths = {file.path for file in known.files}
    assert {path for path in paths if path.startswith("adapters/")} == {
        f"adapters/ko/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "LICENSE")
    }
    assert {"assistant/config.json", "assistant/model-00001-of-00001.safetensors"} <= paths
    assert not [path for path in paths if path.endswith((".bin", ".md")) or "consolidated" in path]
    folders = {"adapters/ko/": "ko", "assistant/": "draft"}
    for file in known.files:
        below = next((prefix for prefix in folders if file.path.startswith(prefix)), "")
        local = three.root / folders.get(below, "base") / file.path.removeprefix(below)
        assert content(f"{release.weights_uri}/{file.path}") == local.read_bytes(), file.path
    assert verify(release.weights_uri).differences == []
    assert sent == sum(file.size for file in known.files)
    assert site.bring(settings, release) == 0


def test_no_pickle_beside_safetensors_is_ever_asked_for(site: Site, three: Release3):
    settings = three.settings(hub={"allow_pickles": True})
    before = len(site.requests("hub"))
    site.bring(settings, resolved(settings))
    asked = [entry["path"] for entry in site.requests("hub")[before:]]
    assert [path for path in asked if "/resolve/" in path]
    assert not [path for path in asked if ".bin" in path]


def test_all_pinned_and_complete_need_no_hub(site: Site, three: Release3, monkeypatch: pytest.MonkeyPatch):
    settings = three.pinned()
    found, release = look_up(settings), resolved(settings)
    site.bring(settings, release)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert look_up(settings) == found
    assert (found.commit, found.architecture, found.max_lora_rank) == (release.commit, "Gemma3ForCausalLM", 8)
    assert found.model
    assert found.assistant_bytes
    assert site.bring(settings, release) == 0
    without_adapter = three.settings(revision=three.commits["base"], adapters={})
    assert in_bucket(without_adapter) is None
    storage.delete(f"{release.weights_uri}/adapters/ko/adapter_config.json")
    assert in_bucket(settings) is None


def test_one_that_follows_a_branch_asks_the_hub(site: Site, three: Release3):
    site.bring(three.pinned(), resolved(three.pinned()))
    before = len(site.requests("hub"))
    look_up(three.settings(revision=three.commits["base"]))
    assert len(site.requests("hub")) > before


def test_an_adapters_readme_and_tokenizer_change_nothing_and_its_weights_do(site: Site, three: Release3):
    before = look_up(three.settings())
    (three.root / "ko" / "README.md").write_text("# Other words\n")
    (three.root / "ko" / "tokenizer.json").write_text('{"a": 1}')
    commit = three.commit_adapter()
    readme = look_up(three.settings())
    assert readme.commits["ko"] == commit != before.commits["ko"]
    assert readme.weights_key == before.weights_key
    write_adapter(three.root / "ko", seed=2)
    three.commit_adapter()
    assert look_up(three.settings()).weights_key != before.weights_key


def test_the_same_adapter_under_another_name_is_another_set_of_weights(site: Site, three: Release3):
    other = three.settings(adapters={"korean": {"model": three.ko}})
    assert look_up(other).weights_key != look_up(three.settings()).weights_key


def test_a_run_that_died_moves_what_is_missing_only(site: Site, three: Release3):
    settings = three.settings()
    release = resolved(settings)
    site.bring(settings, release)
    storage.delete(manifest.uri(release.weights_uri))
    gone = ("adapters/ko/adapter_model.safetensors", "assistant/config.json")
    for path in gone:
        storage.delete(f"{release.weights_uri}/{path}")
    sizes = [three.root / "ko" / "adapter_model.safetensors", three.root / "draft" / "config.json"]
    assert site.bring(settings, release) == sum(path.stat().st_size for path in sizes)
    assert verify(release.weights_uri).differences == []


# -- what is refused ----------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4 * MIB])


def test_a_broken_adapter_is_the_releases_fault_and_nothing_large_has_moved(site: Site, three: Release3):
    cut(three.root / "ko" / "adapter_model.safetensors")
    three.commit_adapter()
    release = resolved(three.settings())
    with pytest.raises(ReleaseError, match=rf"the adapter ko \({three.ko}\): adapter_model.safetensors is cut short"):
        site.bring(three.settings(), release)
    assert manifest.listing(release.weights_uri) == {}


def test_a_broken_assistant_is_as_well(site: Site, three: Release3):
    (three.root / "draft" / "model-00001-of-00001.safetensors").unlink()
    site.commit(three.draft, three.root / "draft")
    release = resolved(three.settings())
    with pytest.raises(
        ReleaseError, match=rf"the assistant \({three.draft}\): model-00001-of-00001.safetensors missing"
    ):
        site.bring(three.settings(), release)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "is of the kind IA3: vLLM serves LORA alone"),
        ({"r": 0}, "its rank r is 0, not a whole number above 0"),
        ({"r": "8"}, "its rank r is '8'"),
        ({"rank_pattern": {"q_proj": 1024}}, "its rank is 1024, and vLLM serves 512 at most"),
        ({"use_dora": True}, "uses DoRA, which vLLM does not serve"),
        ({"trainable_token_indices": [1, 2]}, "uses trained token embeddings"),
        ({"bias": "all", "modules_to_save": ["lm_head"]}, r"uses bias and whole modules \(lm_head\)"),
        ({"init_lora_weights": "pissa_niter_4"}, "uses the initialisation pissa_niter_4"),
        ({"target_modules": None, "lora_alpha": None}, None),
    ],
)
def test_an_adapter_that_vllm_cannot_serve(site: Site, three: Release3, config: dict[str, Any], words: str | None):
    write_adapter(three.root / "ko", **config)
    if words is None:
        words = "does not say lora_alpha and target_modules"
        (three.root / "ko" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    three.commit_adapter()
    with pytest.raises(RequestError, match=f"{three.ko}'s adapter_config.json.*{words}"):
        look_up(three.settings())


def test_a_model_is_no_adapter(site: Site, three: Release3):
    settings = three.settings(adapters={"ko": {"model": three.draft}})
    with pytest.raises(RequestError, match=f"{three.draft} has no adapter_config.json: it is a model of its own"):
        look_up(settings)


def test_an_adapter_is_no_assistant(site: Site, three: Release3):
    settings = three.settings(assistant={"model": three.ko, "num_speculative_tokens": 4})
    with pytest.raises(RequestError, match=f"{three.ko} has no config.json"):
        look_up(settings)


def test_a_model_of_its_own_is_no_assistant_either(site: Site, three: Release3):
    """As real vLLM says once it has a GPU: all drafting layers should belong to the same kv cache group."""
    settings = three.settings(assistant={"model": three.model, "num_speculative_tokens": 4})
    with pytest.raises(
        RequestError, match=f"{three.model}'s config.json says that it is a Gemma3ForCausalLM, a model of"
    ):
        look_up(settings)


def test_an_adapter_of_another_model_is_a_warning(site: Site, three: Release3):
    assert look_up(three.settings()).warnings == ()
    write_adapter(three.root / "ko", base_model_name_or_path="/home/me/gemma")
    three.commit_adapter()
    (warning,) = look_up(three.settings()).warnings
    assert f"{three.ko}'s adapter_config.json was made for /home/me/gemma, and goes on {three.model}" in warning


def test_the_largest_rank_of_all_is_the_engines_next(site: Site, three: Release3):
    write_adapter(three.root / "ko", r=4, rank_pattern={"q_proj": 33})
    three.commit_adapter()
    assert look_up(three.settings()).max_lora_rank == 64


# -- pickles ------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(three: Release3) -> Release3:
    """The model without safetensors, in two pickles."""
    for path in (three.root / "base").glob("*.safetensors*"):
        path.unlink()
    (three.root / "base" / "pytorch_model.bin").unlink()
    for number in (1, 2):
        (three.root / "base" / f"pytorch_model-0000{number}-of-00002.bin").write_bytes(b"a pickle" * number)
    (three.root / "base" / "training_args.bin").write_bytes(b"a pickle")
    three.site.commit(three.model, three.root / "base")
    return three


def test_pickles_are_refused_with_the_reason_and_the_setting(site: Site, pickled: Release3):
    with pytest.raises(RequestError) as error:
        look_up(pickled.settings())
    assert str(error.value) == (
        f"{pickled.model} has no safetensors: only pickles (pytorch_model-00001-of-00002.bin, "
        "pytorch_model-00002-of-00002.bin). A pickle is a program, and may do anything when it is loaded. Take a "
        "repository that has safetensors, or convert it; for one whose makers you trust like your own code set "
        "hub.allow_pickles: true"
    )


def test_pickles_are_taken_when_somebody_says_so_and_not_a_day_longer(site: Site, pickled: Release3):
    settings = pickled.settings(hub={"allow_pickles": True}, adapters={}, assistant=None)
    release = resolved(settings)
    site.bring(settings, release)
    paths = set(manifest.listing(release.weights_uri))
    assert {path for path in paths if checkpoint.is_pickle(path)} == {
        f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)
    }
    pinned = {"revision": release.commit, "adapters": {}, "assistant": None}
    assert in_bucket(pickled.settings(hub={"allow_pickles": True}, **pinned)) is not None
    assert in_bucket(pickled.settings(**pinned)) is None


def test_a_pickle_that_is_missing_is_missed(site: Site, pickled: Release3):
    (pickled.root / "base" / "pytorch_model-00002-of-00002.bin").unlink()
    site.commit(pickled.model, pickled.root / "base")
    settings = pickled.settings(hub={"allow_pickles": True})
    with pytest.raises(ReleaseError, match=r"pytorch_model-00002-of-00002.bin missing"):
        site.bring(settings, resolved(settings))


def test_a_pickled_adapter_needs_the_setting_too(site: Site, three: Release3):
    (three.root / "ko" / "adapter_model.safetensors").unlink()
    three.commit_adapter()
    with pytest.raises(RequestError, match=f"{three.ko} has no safetensors: only pickles .adapter_model.bin"):
        look_up(three.settings())
    (part,) = [p for p in repositories.find(three.settings(hub={"allow_pickles": True})) if p.repository.is_adapter]
    assert [file.path for file in part.chosen.served] == ["adapter_config.json", "adapter_model.bin"]


# -- an adapter that would do nothing -----------------------------------------------------------------------


def spoil(three: Release3, *names: str) -> None:
    """Gives the adapter tensors of these names, and commits it."""
    write_shard(three.root / "ko" / "adapter_model.safetensors", names[0], MIB, 1, *names[1:])
    three.commit_adapter()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["base_model.model.model.embed_tokens.base_layer.weight"], "it holds no LoRA weights"),
        (
            [f"base_model.model.elsewhere.tensor.lora_{side}.weight" for side in "AB"],
            r"the model has none of its modules \(elsewhere.tensor is one\): it was made for another",
        ),
    ],
)
def test_one_that_would_do_nothing_is_refused_as_it_is_found(site: Site, three: Release3, names: list[str], words: str):
    spoil(three, *names)
    before = len(site.requests("hub"))
    with pytest.raises(RequestError, match=rf"the adapter ko \({three.ko}\): {words}, so it would do nothing"):
        look_up(three.settings())
    # Headers alone were read: nothing is in the bucket, and no file was asked for whole.
    asked = [request for request in site.requests("hub")[before:] if request["path"].endswith(".safetensors")]
    assert asked
    assert not [uri for uri in storage.list_uris("gs://demo-bucket/models/") if f"/{three.model}/" in uri]


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 64,
        b"{" * 5000,
        b"[]",
        b'{"a.lora_A.weight": 1}',
        b'{"a.lora_A.weight": {"dtype": "F32", "shape": [1e99], "data_offsets": [0, 4]}}',
        b'{"a.lora_A.weight": {"dtype": "F32", "shape": [-1, 9999999999999], "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_that_nobody_can_read_is_for_the_download_to_judge(site: Site, three: Release3, header: bytes):
    file = three.root / "ko" / "adapter_model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4096)
    three.commit_adapter()
    settings = three.settings()
    release = resolved(settings)
    with pytest.raises(ReleaseError, match=r"the adapter ko"):
        site.bring(settings, release)
    assert storage.read_json(manifest.uri(release.weights_uri)) is None


def test_an_empty_header_is_an_adapter_that_would_do_nothing(three: Release3):
    (three.root / "ko" / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    three.commit_adapter()
    with pytest.raises(RequestError, match="it holds no LoRA weights, so it would do nothing"):
        look_up(three.settings())


def test_one_whose_scale_is_nothing_would_do_nothing(three: Release3):
    write_adapter(three.root / "ko", lora_alpha=0)
    three.commit_adapter()
    with pytest.raises(RequestError, match="its lora_alpha is 0, so it would do nothing"):
        look_up(three.settings())
