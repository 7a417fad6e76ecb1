"""Which files are served, and what makes them a whole model."""

from __future__ import annotations

import json
import struct

import pytest

from serving.clients.digest import ServedFile
from serving.errors import ReleaseError, RequestError
from serving.weights.checkpoint import INDEX, Chosen, check_shards, choose, header_length, tensors
from serving.weights.identity import weights_key


def listed(*paths: str) -> list[ServedFile]:
    return [ServedFile(path, 100, "a" * 64, "b" * 40) for path in paths]


def index(**weight_map: str) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


def chosen(*paths: str, index: bytes | None = None) -> set[str]:
    return {file.path for file in choose("m", listed(*paths), index).served}


def test_weights_configuration_tokenizer_and_template_are_served():
    served = {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "preprocessor_config.json",
        "vocab.txt", "merges.txt", "spiece.model", "x.tiktoken",
    }  # fmt: skip
    ignored = {
        "README.md", ".gitattributes", "pytorch_model.bin", "model.gguf", "model.onnx", "original/consolidated.00.pth",
        "original/params.json", "flax_model.msgpack", "training.py", "_MANIFEST.json", "images/a.png",
        "pytorch_model.bin.index.json.bak", "other.safetensors.index.json",
    }  # fmt: skip
    assert chosen(*served, *ignored) == served


def test_an_index_says_which_safetensors_count():
    paths = ("config.json", INDEX, "model-1.safetensors", "model-2.safetensors", "consolidated.safetensors")
    assert chosen(*paths, index=index(a="model-1.safetensors", b="model-2.safetensors")) == {*paths[:4]}


def test_an_index_may_name_shards_in_folders_and_shards_that_are_missing():
    paths = ("config.json", INDEX, "deep/model-1.safetensors")
    assert chosen(*paths, index=index(a="deep/model-1.safetensors", b="gone.safetensors")) == {*paths}


def test_a_broken_index_is_left_to_the_check_of_the_shards():
    paths = ("config.json", INDEX, "model.safetensors")
    assert chosen(*paths, index=b"{") == {*paths}


def test_an_adapter_beside_a_model_stays_behind():
    paths = ("config.json", "model.safetensors", "adapter_model.safetensors", "adapter_model-merged.safetensors")
    assert chosen(*paths) == {*paths[:2]}
    with pytest.raises(RequestError, match="m has no weights but an adapter's: name it in `adapters`"):
        choose("m", listed("config.json", "adapter_config.json", "adapter_model.safetensors"), None)


@pytest.mark.parametrize(
    "path", ["a\udcff.json", "a\nb.json", "a\x00.json", "a\x7f.json", f"{'a' * 300}.json", f"{'한' * 90}.json"]
)
def test_a_file_name_that_no_bucket_or_file_system_takes_is_refused(path: str):
    with pytest.raises(
        RequestError, match=r"m has a file whose name no bucket, or no file system, takes: '.*Rename it"
    ):
        choose("m", listed("config.json", "model.safetensors", path), None)
    choose("m", listed("config.json", "model.safetensors", path.replace(".json", ".md")), None)


@pytest.mark.parametrize("path", ["../model.safetensors", "./model.safetensors", "a//model.safetensors"])
def test_a_path_that_leads_elsewhere_is_refused(path: str):
    with pytest.raises(RequestError, match="name no bucket, or no file system, takes"):
        choose("m", listed("config.json", INDEX, path), index(a=path))


def test_a_licence_goes_along_and_names_nothing():
    files = choose("m", listed("config.json", "model.safetensors", "LICENSE", "NOTICE.txt", "USE_POLICY.md"), None)
    assert {file.path for file in files.licence} == {"LICENSE", "NOTICE.txt", "USE_POLICY.md"}
    assert {file.path for file in files.files} > {file.path for file in files.served}
    without = choose("m", listed("config.json", "model.safetensors"), None)
    assert weights_key([("base", files.served)]) == weights_key([("base", without.served)])


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (("config.json", "pytorch_model.bin"), r"only pickles \(pytorch_model.bin\)"),
        (("config.json", "README.md"), "no safetensors: no weights that vLLM could load"),
        (("model.safetensors",), "no config.json"),
    ],
)
def test_what_is_no_model_to_serve_is_refused(paths: tuple[str, ...], words: str):
    with pytest.raises(RequestError, match=words):
        choose("m", listed(*paths), None)


# -- headers ------------------------------------------------------------------------------------------------


def header(*offsets: tuple[int, int], dtype: str = "U8") -> bytes:
    entries = {
        f"t{number}": {"dtype": dtype, "shape": [last - first], "data_offsets": [first, last]}
        for number, (first, last) in enumerate(offsets)
    }
    return json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()


def tensor(**changes: object) -> bytes:
    """A header of one tensor of four bytes, or of what is made of it."""
    return json.dumps({"t": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}}).encode()


def shard(head: bytes, data: int) -> ServedFile:
    return ServedFile("model.safetensors", 8 + len(head) + data, "a" * 64)


def test_tensors_that_fill_the_file_are_fine():
    head = header((4, 10), (0, 4), (10, 11))
    assert tensors(shard(head, 11), head) == {"t0", "t1", "t2"}


@pytest.mark.parametrize(
    ("head", "data", "words"),
    [
        (header((0, 10)), 9, "is cut short: its tensors take 10 bytes and 9 are there"),
        (header((0, 10)), 11, "is too long"),
        (header((0, 4), (5, 10)), 10, "starts at byte 5 of the data, not at 4"),
        (header((0, 4), (3, 10)), 10, "starts at byte 3"),
        (header((0, 4), dtype="F32"), 4, "not those of its shape"),
        (b'{"t": {"dtype": "U8", "shape": [1]}}', 1, "does not describe tensors"),
        (b'{"t": 5}', 1, "does not describe tensors"),
        (b"[]", 1, "is not a JSON object"),
        (b'{"t"', 1, "is not JSON"),
        (b"{}", 0, "model.safetensors holds no tensor"),
        (b'{"__metadata__": {"format": "pt"}}', 0, "holds no tensor"),
        (header((0, 4), (4, 4)), 4, r"tensor t1 has the shape \[0\]: there is nothing in it"),
        (tensor(shape=[-2, -2]), 4, r"tensor t has the shape \[-2, -2\]"),
        (tensor(shape=[4.0]), 4, r"tensor t has the shape \[4.0\]"),
        (tensor(shape=[True, 4]), 4, r"tensor t has the shape \[True, 4\]"),
        (tensor(shape="four"), 4, "tensor t has the shape four"),
        (tensor(shape=None), 4, "does not describe tensors"),
        (tensor(dtype="FUTURE"), 4, "tensor t is of no dtype that safetensors knows: 'FUTURE'"),
        (tensor(dtype=""), 4, "tensor t is of no dtype that safetensors knows: ''"),
        (tensor(dtype=["U8"]), 4, "does not describe tensors"),
        (tensor(data_offsets=[0, "4"]), 4, "does not describe tensors"),
        (tensor(data_offsets=[-4, 0]), 4, "starts at byte -4 of the data, not at 0"),
        (tensor(data_offsets=[4, 0]), 4, "starts at byte 4"),
        (tensor(data_offsets=[0, 4, 4]), 4, "does not describe tensors"),
        (
            b'{"t": %s, "t": %s}' % ((tensor()[6:-1],) * 2),
            4,
            "the header of model.safetensors .* 't' stands in it twice",
        ),
        (
            b'{"t": {"dtype": "U8", "dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}',
            4,
            "'dtype' stands in it twice",
        ),
        (b'{"t": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 4, "is nested deeper than anything that reads it"),
        (b'{"\xff": 1}', 4, "is not JSON"),
    ],
)
def test_a_header_that_cannot_be_true_is_the_releases_fault(head: bytes, data: int, words: str):
    with pytest.raises(ReleaseError, match=words):
        tensors(shard(head, data), head)


def test_a_dtype_of_half_a_byte_and_a_tensor_without_dimensions_are_fine():
    head = tensor(dtype="F4", data_offsets=[0, 2])
    assert tensors(shard(head, 2), head) == {"t"}
    head = tensor(dtype="F32", shape=[])
    assert tensors(shard(head, 4), head) == {"t"}


@pytest.mark.parametrize(
    ("size", "head"),
    [(0, b""), (5, b"12345"), (20, struct.pack("<Q", 13)), (1 << 40, struct.pack("<Q", 100_000_001))],
)
def test_a_file_that_ends_before_its_header_is_cut(size: int, head: bytes):
    with pytest.raises(ReleaseError, match=r"a.safetensors is cut short"):
        header_length(ServedFile("a.safetensors", size, "a" * 64), head)


def test_a_header_ends_where_it_says():
    assert header_length(ServedFile("a", 20, "a" * 64), struct.pack("<Q", 12)) == 20


# -- shards together ----------------------------------------------------------------------------------------


def of_shards(index: bytes | None, *paths: str) -> Chosen:
    return Chosen(listed(*paths), [], index)


def test_an_index_that_all_shards_agree_with_passes():
    both = of_shards(index(x="a.safetensors", y="b.safetensors"), "a.safetensors", "b.safetensors")
    check_shards(both, {"a.safetensors": {"x", "more"}, "b.safetensors": {"y"}})


@pytest.mark.parametrize(
    ("index", "held", "words"),
    [
        (index(x="a.safetensors", y="b.safetensors"), {"a.safetensors": {"x"}}, "b.safetensors missing: model.safe"),
        (index(x="a.safetensors", y="a.safetensors"), {"a.safetensors": {"x"}}, "tensor y missing"),
        (index(x="a.safetensors", y="a.safetensors"), {"a.safetensors": set()}, "tensor x and 1 more missing"),
        (b"{}", {"a.safetensors": {"x"}}, "no weight_map"),
        (b"[]", {"a.safetensors": {"x"}}, "not a JSON object"),
        (None, {"m-00002-of-00003.safetensors": {"x"}}, "m-00001-of-00003.safetensors, m-00003-of-00003.safetensors"),
        (None, {"a.safetensors": {"x", "y"}, "b.safetensors": {"y"}}, "a.safetensors and b.safetensors both hold y"),
        (
            None,
            {"a.safetensors": {"base_model.model.x.lora_A.weight"}},
            "holds base_model.model.x.lora_A.weight, a LoRA",
        ),
    ],
)
def test_shards_that_are_no_whole_are_the_releases_fault(index: bytes | None, held: dict, words: str):
    with pytest.raises(ReleaseError, match=words):
        check_shards(of_shards(index, *held), held)


def test_one_file_without_an_index_is_a_whole():
    check_shards(of_shards(None, "model.safetensors"), {"model.safetensors": {"x"}})
