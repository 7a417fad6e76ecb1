"""`/v1/chat/completions`: prompt, answer, and vLLM's shapes of it (openai/chat_completion/{protocol,serving}.py)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from aiohttp import web

from emulated_cloud.engine import logprobs
from emulated_cloud.engine.answer import Answer
from emulated_cloud.engine.core import EngineCore
from emulated_cloud.engine.errors import ApiError, refused
from emulated_cloud.engine.generation import constraint_of, runs
from emulated_cloud.engine.lora import Adapter
from emulated_cloud.engine.model import Model, Prompt
from emulated_cloud.engine.protocol import ChatRequest, Message, NamedToolChoice, Tool, parse
from emulated_cloud.engine.sampling import Output
from emulated_cloud.engine.streams import dumps, event
from emulated_cloud.engine.text import seed_of
from emulated_cloud.engine.tokenizer import TemplateFailed

TEXT_PARTS = {"text", "input_text", "output_text"}
MEDIA_PARTS = {
    "image_url": "image",
    "image": "image",
    "input_image": "image",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "video",
}


def render(
    model: Model, messages: list[Message], tools: list[Tool] | None, kwargs: dict[str, Any], special: bool = False
) -> Prompt:
    """The prompt of a conversation. Raises ApiError 400."""
    media: list[str] = []
    shown = [flatten(model, message, media) for message in messages]
    definitions = [tool.model_dump(exclude_none=True) for tool in tools] if tools else None
    try:
        prompt = model.tokenizer.render(shown, tools=definitions, **kwargs)
    except TemplateFailed as failure:
        raise ApiError(400, str(failure)) from failure
    texts = [part["text"] for part in parts(messages[-1]) if "text" in part] if messages else []
    ids = model.tokenizer.encode(prompt, special, model.max_model_len + 1)
    return Prompt(ids, " ".join(texts), dumps(media) if media else "")


def parts(message: Message) -> list[dict[str, Any]]:
    """A message's content as parts."""
    if message.content is None:
        return []
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in message.content]


def flatten(model: Model, message: Message, media: list[str]) -> dict[str, Any]:
    """A message as the template takes it; what its media are goes to `media`."""
    shown: list[dict[str, Any]] = []
    for part in parts(message):
        kind = part.get("type", "text")
        if kind in TEXT_PARTS:
            if not isinstance(part.get("text"), str):
                raise ApiError(400, f"Expected 'text' of a content part to be a string, got {part.get('text')!r}")
            shown.append({"type": "text", "text": part["text"]})
        elif kind in MEDIA_PARTS:
            modality = MEDIA_PARTS[kind]
            if not model.checkpoint.architecture.endswith("ForConditionalGeneration"):
                raise ApiError(400, f"{model.names[0]} is not a multimodal model")
            allowed = allowed_media(model, modality)
            media.append(dumps(part))
            if allowed is not None and len(media) > allowed:
                raise ApiError(400, f"At most {allowed} {modality}(s) may be provided in one prompt.")
            shown.append({"type": modality})
        else:
            raise ApiError(400, f"Unknown part type: {kind}")
    extra = {key: value for key, value in (message.model_extra or {}).items() if value is not None}
    takes_parts = model.tokenizer.takes_parts and any(part["type"] != "text" for part in shown)
    content: Any = shown if takes_parts else "\n".join(part.get("text", "") for part in shown)
    return {"role": message.role, "content": content, **extra}


def allowed_media(model: Model, modality: str) -> int | None:
    """How many of a modality a prompt may hold: none where the encoders are left out; None where nobody said."""
    if model.args.language_model_only:
        return 0
    return (model.args.limit_mm_per_prompt or {}).get(modality)


def called_tool(model: Model, request: ChatRequest) -> Tool | None:
    """The tool that the answer calls, or None for a text: "auto" calls one, unless a tool has just answered."""
    choice, tools = request.tool_choice, request.tools or []
    if choice is None:
        choice = "auto" if tools else "none"
    if choice == "none":
        return None
    if not tools:
        raise refused("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if isinstance(choice, NamedToolChoice):
        for tool in tools:
            if tool.function.name == choice.function.name:
                return tool
        raise refused("The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice")
    if choice == "auto":
        if not (model.args.enable_auto_tool_choice and model.args.tool_call_parser):
            raise ApiError(
                400,
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            )
        if request.messages[-1].role == "tool" or model.checkpoint.padding_only:
            return None
    return tools[0]


async def chat_completions(request: web.Request, model: Model, core: EngineCore) -> web.StreamResponse:
    """Answers a chat request, streamed or whole. Raises ApiError, QueueOverflow."""
    body = await parse(ChatRequest, request)
    adapter = model.resolve(body.model)
    if not body.messages:
        raise ApiError(400, "Cannot apply chat template to an empty conversation. Provide at least one message.")
    check_logprobs(model, body)
    tool = called_tool(model, body)
    kwargs = {
        "add_generation_prompt": body.add_generation_prompt,
        **(model.args.default_chat_template_kwargs or {}),
        **(body.chat_template_kwargs or {}),
    }
    prompt = render(model, body.messages, body.tools, kwargs, body.add_special_tokens)
    max_tokens = ("max_completion_tokens", body.max_completion_tokens)
    if body.max_completion_tokens is None:
        max_tokens = ("max_tokens", body.max_tokens)
    constraint = ("json", tool.function.parameters or {"type": "object"}) if tool else constraint_of(body)
    thoughts = model.thoughts(prompt, bool(kwargs.get("enable_thinking")) and not constraint)
    sequences = runs(model, body, prompt, adapter, max_tokens, constraint, thoughts)
    return await ChatAnswer(request, body, model, adapter, prompt, tool, len(thoughts)).give(core, sequences)


def check_logprobs(model: Model, body: ChatRequest) -> None:
    """Raises ApiError 400."""
    if not body.top_logprobs:
        return
    if not body.logprobs:
        raise refused("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    logprobs.check(body.top_logprobs, model.args.max_logprobs)


class ChatAnswer(Answer):
    """The shapes of a chat completion."""

    body: ChatRequest
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self,
        request: web.Request,
        body: ChatRequest,
        model: Model,
        adapter: Adapter | None,
        prompt: Prompt,
        tool: Tool | None,
        thoughts: int,
    ):
        """thoughts: how many tokens of each choice are the model's thinking."""
        super().__init__(request, body, model, adapter, [prompt])
        self.tool = tool
        # Without a parser nobody tells thinking from answers.
        self.thoughts = thoughts if model.args.reasoning_parser else 0

    def usage(self, completion: int, prompt: Prompt | None = None) -> dict[str, Any]:
        usage = super().usage(completion, prompt)
        if self.model.args.reasoning_parser:
            choices = 1 if prompt else self.body.n or 1
            usage["completion_tokens_details"] = {"reasoning_tokens": min(self.thoughts * choices, completion)}
        return usage

    def finish_reason(self, output: Output) -> str | None:
        """A called tool ends with `tool_calls`, unless the request named it."""
        named = isinstance(self.body.tool_choice, NamedToolChoice)
        return "tool_calls" if self.tool and output.finish_reason == "stop" and not named else output.finish_reason

    def logprobs(self, outputs: list[Output]) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        ids = [output.token_id for output in outputs]
        return logprobs.chat(self.model.tokenizer, ids, self.body.top_logprobs or 0)

    # -- whole ----------------------------------------------------------------------------------------------

    def whole(self, results: list[list[Output]]) -> dict[str, Any]:
        of_prompt = {"prompt_logprobs": None, "prompt_token_ids": self.prompt_ids(0), "prompt_text": None}
        return {**super().whole(results), **of_prompt}

    def choice(self, index: int, outputs: list[Output]) -> dict[str, Any]:
        thought = "".join(output.text for output in outputs[: self.thoughts])
        said = "".join(output.text for output in outputs[self.thoughts :])
        message: dict[str, Any] = {
            "role": self.model.args.response_role,
            "content": None if thought and not said else said,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": thought or None,
        }
        if self.tool:
            call = {"id": self.call_id(index), "type": "function"}
            message["content"] = "" if self.body.tool_choice not in (None, "auto") else None
            message["tool_calls"] = [{**call, "function": {"name": self.tool.function.name, "arguments": said}}]
        return {
            "index": index,
            "message": message,
            "logprobs": self.logprobs(outputs),
            "finish_reason": self.finish_reason(outputs[-1]),
            "stop_reason": outputs[-1].stop_reason,
            "token_ids": self.token_ids(outputs),
            "routed_experts": None,
        }

    def call_id(self, index: int) -> str:
        return f"chatcmpl-tool-{seed_of(self.id, index):016x}"

    # -- streamed -------------------------------------------------------------------------------------------

    def opening(self, choices: int) -> Iterator[bytes]:
        """The role of every choice."""
        for index in range(choices):
            delta = {"role": self.model.args.response_role, "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            of_prompt = {"prompt_token_ids": self.prompt_ids(index), "prompt_text": None}
            yield event(self.chunk([choice], **self.usage_so_far(index, 0), **of_prompt))

    def events(self, index: int, count: int, output: Output) -> Iterator[bytes]:
        """A tool's call is named before its arguments begin."""
        thinks = count <= self.thoughts
        if self.plain and not output.finish_reason and not thinks:
            head, tail = self.plain
            yield head + dumps(output.text).encode() + tail
            return
        if self.tool and count == 1:
            function = {"name": self.tool.function.name, "arguments": ""}
            call = {"id": self.call_id(index), "type": "function", "index": 0, "function": function}
            named: dict[str, Any] = {"index": index, "delta": {"tool_calls": [call]}, "logprobs": None}
            named |= {"finish_reason": None, "token_ids": None}
            yield event(self.chunk([named], **self.usage_so_far(index, count)))
        if self.tool:
            delta: dict[str, Any] = {"tool_calls": [{"index": 0, "function": {"arguments": output.text}}]}
        else:
            delta = {"reasoning" if thinks else "content": output.text}
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": self.logprobs([output]),
            "finish_reason": self.finish_reason(output),
        }
        if output.finish_reason:
            choice["stop_reason"] = output.stop_reason
        choice["token_ids"] = self.token_ids([output])
        yield event(self.token_chunk(choice, count, output))

    @cached_property
    def plain(self) -> tuple[bytes, bytes] | None:
        """What stands before and after the text in a chunk of nothing but text: made once, not for each token. None
        where chunks hold more."""
        body = self.body
        if self.continuous_usage or body.logprobs or body.return_token_ids or self.tool or (body.n or 1) > 1:
            return None
        mark = "\0"
        choice = {"index": 0, "delta": {"content": mark}, "logprobs": None, "finish_reason": None, "token_ids": None}
        head, tail = event(self.chunk([choice])).split(dumps(mark).encode())
        return head, tail
