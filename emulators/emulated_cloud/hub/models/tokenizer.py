"""The tiny models' tokenizer: a byte-fallback BPE shaped like Gemma's, trained on corpus.txt, and its chat template.

Ids of control tokens are Gemma's own (pad 0, eos 1, bos 2, start of turn 105, end of turn 106); then come the bytes,
the characters and words of the corpus, and `<unusedN>` up to VOCABULARY. Any text can be encoded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from emulated_cloud.hub.models.files import write_json

VOCABULARY = 4096
PAD, EOS, BOS, START_OF_TURN, END_OF_TURN = 0, 1, 2, 105, 106
_CONTROL = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>"}
_FIRST_BYTE = 107


@dataclass(frozen=True)
class Family:
    """What differs between the tokenizers of Gemma 3 and 4: control tokens by id, and what a system turn becomes."""

    control: dict[int, str]
    system_turn: bool


GEMMA_3 = Family({START_OF_TURN: "<start_of_turn>", END_OF_TURN: "<end_of_turn>"}, system_turn=False)
GEMMA_4 = Family(
    {98: "<|think|>", 100: "<|channel>", 101: "<channel|>", START_OF_TURN: "<|turn>", END_OF_TURN: "<turn|>"},
    system_turn=True,
)


def write_tokenizer(folder: Path, family: Family, max_length: int) -> list[int]:
    """Writes tokenizer.json, its configuration and the chat template; returns the ids of the speakable tokens, those
    which by themselves show as text: no control token, no single byte, no white space."""
    tokenizer = _train(family)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "special_tokens_map.json", {**names, "mask_token": "<mask>"})
    write_json(
        folder / "tokenizer_config.json",
        {
            **names,
            "mask_token": "<mask>",
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length,
            "padding_side": "left",
            "spaces_between_special_tokens": False,
            "tokenizer_class": "GemmaTokenizer",
        },
    )
    (folder / "chat_template.jinja").write_text(_chat_template(family), encoding="utf-8")
    special = set(tokenizer.get_added_tokens_decoder())
    words = {index: piece for piece, index in tokenizer.get_vocab().items() if index >= _FIRST_BYTE + 256}
    return sorted(i for i, piece in words.items() if i not in special and piece.replace("▁", " ").strip())


def _train(family: Family) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    spaces = normalizers.Replace(" ", "▁")
    trained = Tokenizer(models.BPE())
    trained.normalizer = spaces
    # Training splits at words. The tokenizer itself does not, as Gemma's does not; it comes to the same, because no
    # merge that was learnt crosses a word's start.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - _FIRST_BYTE - 256,
        initial_alphabet=["\n", "\t", *map(chr, range(33, 127))],
        show_progress=False,
    )
    corpus = files("emulated_cloud.hub.models").joinpath("corpus.txt").read_text(encoding="utf-8")
    trained.train_from_iterator(corpus.splitlines(), trainer)
    learnt = json.loads(trained.to_str())["model"]

    control = _CONTROL | family.control
    unused = iter(range(VOCABULARY))
    pieces = [control.get(i) or f"<unused{next(unused)}>" for i in range(_FIRST_BYTE)]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    padding = [f"<unused{next(unused)}>" for _ in range(VOCABULARY - len(pieces))]
    special = [*pieces[:_FIRST_BYTE], *padding]
    pieces += padding

    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(pair) for pair in learnt["merges"]],
            unk_token="<unk>",  # noqa: S106
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    tokenizer.normalizer = spaces
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _chat_template(family: Family) -> str:
    """Turns as the family writes them. Gemma 3 has no system turn: its text opens the first turn of the user."""
    start, end = family.control[START_OF_TURN], family.control[END_OF_TURN]
    system = (
        f"{{{{ '{start}system\\n' + text(messages[0]).strip() + '{end}\\n' }}}}"
        if family.system_turn
        else "{% set ns.preface = text(messages[0]) + '\\n\\n' %}"
    )
    return f"""{{%- macro text(message) -%}}
{{%- if message.content is string -%}}{{{{ message.content }}}}{{%- else -%}}
{{%- for part in message.content if part.type == 'text' -%}}{{{{ part.text }}}}{{%- endfor -%}}
{{%- endif -%}}
{{%- endmacro -%}}
{{{{ bos_token }}}}
{{%- set ns = namespace(preface='') -%}}
{{%- if messages[0].role == 'system' -%}}
{system}
{{%- set messages = messages[1:] -%}}
{{%- endif -%}}
{{%- for message in messages -%}}
{{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}}
{{{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}}}
{{%- endif -%}}
{{%- set role = 'model' if message.role == 'assistant' else message.role -%}}
{{{{ '{start}' + role + '\\n' + ns.preface + text(message).strip() + '{end}\\n' }}}}
{{%- set ns.preface = '' -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
{{{{ '{start}model\\n' }}}}
{{%- endif -%}}
"""
