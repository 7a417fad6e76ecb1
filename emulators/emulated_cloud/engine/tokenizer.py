"""The checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

from emulated_cloud.engine.checkpoint import BadModel

NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one."
)


class TemplateFailed(Exception):
    """The chat template refused the messages, in its own words."""


class Tokenizer:
    """Text to tokens and back, and messages to a prompt.

    eos_ids: every token that ends an answer, the tokenizer's own first; the others count as stop tokens, as in vLLM.
    """

    def __init__(self, folder: Path, config: dict[str, Any], chat_template: str | None = None):
        """Raises BadModel for files that transformers could not read either."""
        try:
            self.fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises plain Exception
            raise BadModel("OSError", f"Can't load tokenizer for '{folder}': {error}") from error
        settings = read_json(folder / "tokenizer_config.json")
        self.generation_config = read_json(folder / "generation_config.json")
        self.special = {name: token_text(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
        self.eos_ids = self._eos_ids(config)
        self.template = load_template(folder, settings, chat_template)
        # A template that looks at the parts' types gets them as they are; another gets their texts joined.
        self.takes_parts = "type" in (self.template or "")

    def _eos_ids(self, config: dict[str, Any]) -> list[int]:
        text = config.get("text_config") or {}
        own = self.fast.token_to_id(self.special["eos_token"] or "")
        ids = [] if own is None else [own]
        for source in (config, text, self.generation_config):
            value = source.get("eos_token_id")
            ids += value if isinstance(value, list) else [value] if isinstance(value, int) else []
        return list(dict.fromkeys(ids))

    def encode(self, text: str, add_special_tokens: bool = False, most: int | None = None) -> list[int]:
        """The tokens of a text, `most` of them at most."""
        return self.fast.encode(text, add_special_tokens=add_special_tokens).ids[:most]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.fast.decode(ids, skip_special_tokens=skip_special_tokens)

    def pieces(self, text: str) -> list[tuple[int, str]]:
        """The tokens of a text and what each adds to it; a byte of an unfinished character adds nothing."""
        return _pieces(self.fast, text)

    def token(self, id_: int) -> str:
        """A token as `/tokenize` and logprobs show it, or the empty string for one that does not exist."""
        return self.fast.id_to_token(id_) or ""

    def render(self, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        """The prompt of a conversation. Raises TemplateFailed."""
        import jinja2

        if self.template is None:
            raise TemplateFailed(NO_TEMPLATE)
        try:
            return compiled(self.template).render(messages=messages, **self.special, **kwargs)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise TemplateFailed(str(error)) from error


@lru_cache(maxsize=4096)
def _pieces(fast: FastTokenizer, text: str) -> list[tuple[int, str]]:
    stream = DecodeStream(skip_special_tokens=True)
    # Some decoders drop the space before the first token: this one is not the first.
    for id_ in fast.encode(".", add_special_tokens=False).ids:
        stream.step(fast, id_)
    return [(id_, stream.step(fast, id_) or "") for id_ in fast.encode(text, add_special_tokens=False).ids]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file. Raises BadModel."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BadModel("OSError", f"It looks like the config file at '{file}' is not a valid JSON file.") from error
    return value if isinstance(value, dict) else {}


def token_text(token: Any) -> str | None:
    """tokenizer_config.json names a special token by its text or by an AddedToken object."""
    return token.get("content") if isinstance(token, dict) else token


def load_template(folder: Path, settings: dict[str, Any], given: str | None) -> str | None:
    """`--chat-template` (a file, or the template itself), else chat_template.jinja, else tokenizer_config.json.

    Raises BadModel for a path without a file; that Jinja cannot parse a template shows when it is used, as in vLLM.
    """
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((item["template"] for item in template if item.get("name") == "default"), None)
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if given is not None:
        if Path(given).is_file():
            template = Path(given).read_text(encoding="utf-8")
        elif any(mark in given for mark in "{}\n"):
            template = given.encode().decode("unicode_escape")
        else:
            raise BadModel(
                "ValueError",
                f"The supplied chat template ({given}) looks like a file path, but it failed to be opened. "
                f"Reason: [Errno 2] No such file or directory: '{given}'",
            )
    return template


@lru_cache(maxsize=8)
def compiled(template: str) -> Any:
    """As transformers compiles chat templates: sandboxed, with its filters and globals."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    def strftime_now(form: str) -> str:
        from datetime import datetime

        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string(template)
