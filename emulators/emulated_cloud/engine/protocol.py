"""vLLM's request bodies (vllm/entrypoints/openai/*/protocol.py), and how they are checked.

Fields that only a real engine can honour are accepted and change nothing; fields that vLLM does not know are ignored
by it, too.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emulated_cloud.engine.errors import ApiError, invalid, refused

INT64 = 2**63


class Lenient(BaseModel):
    """Takes fields that it does not know. Built when first used: there are many, and a process uses few."""

    model_config = ConfigDict(extra="allow", defer_build=True)


class Body(Lenient):
    model: str | None = None


class StreamOptions(Lenient):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class JsonSchemaFormat(Lenient):
    name: str
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(Lenient):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Lenient):
    json_: str | dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None
    grammar: str | None = None


class GenerationRequest(Body):
    """What chat and plain completions have in common."""

    max_tokens: int | None = None
    n: int | None = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = Field(None, ge=-INT64, le=INT64 - 1)
    stop: str | list[str] | None = []
    stop_token_ids: list[int] | None = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: bool | None = None
    user: str | None = None
    priority: int = 0
    request_id: str | None = None


class FunctionDefinition(Lenient):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Lenient):
    type: Literal["function"] = "function"
    function: FunctionDefinition


class NamedFunction(Lenient):
    name: str


class NamedToolChoice(Lenient):
    function: NamedFunction
    type: Literal["function"] = "function"


class Message(Lenient):
    role: str
    content: str | list[dict[str, Any] | str] | None = None


class ChatRequest(GenerationRequest):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = True
    reasoning_effort: str | None = None
    include_reasoning: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(GenerationRequest):
    prompt: list[int] | list[list[int]] | str | list[str]
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: int | None = None
    add_special_tokens: bool = True


class TokenizeRequest(Body):
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = False
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None


class DetokenizeRequest(Body):
    tokens: list[Annotated[int, Field(ge=0, le=INT64 - 1)]]


class LoadAdapterRequest(Lenient):
    lora_name: str
    lora_path: str
    load_inplace: bool = False


class RegisterAdapterRequest(Lenient):
    name: str
    src: str


class UnloadAdapterRequest(Lenient):
    lora_name: str
    lora_int_id: int | None = None


Request = TypeVar("Request", bound=BaseModel)


async def parse(kind: type[Request], request: web.Request) -> Request:
    """A request's body. Raises ApiError 400 with the words of FastAPI and pydantic, as vLLM passes them on."""
    if request.content_type != "application/json":
        raise invalid(["Unsupported Media Type: Only 'application/json' is allowed"], None)
    try:
        value = json.loads(await request.read())
    except ValueError as error:
        at = getattr(error, "pos", 0)
        detail = {
            "type": "json_invalid",
            "loc": f"body.{at}",
            "msg": "JSON decode error",
            "input": "<dict of 0 items>",
            "ctx": {"error": getattr(error, "msg", str(error))},
        }
        raise invalid([detail], f"body.{at}") from error
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        details = [
            {
                "type": item["type"],
                "loc": ".".join(map(str, ("body", *item["loc"]))),
                "msg": item["msg"],
                "input": summary(item["input"]),
            }
            for item in error.errors()
        ]
        raise invalid(details, details[0]["loc"]) from error


def summary(value: Any) -> Any:
    """A refused value as vLLM shows it: containers by their size alone."""
    if isinstance(value, (list, dict)):
        return f"<{type(value).__name__} of {len(value)} items>"
    return value[:200] + "...[truncated]" if isinstance(value, str) and len(value) > 200 else value


def check(request: GenerationRequest) -> None:
    """The checks of vLLM's SamplingParams. Raises ApiError 400."""

    if request.n is not None and request.n < 1:
        raise ApiError(400, f"n must be at least 1, got {request.n}.")
    temperature = request.temperature
    if temperature is not None and temperature < 0:
        raise refused(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise refused(f"top_p must be in (0, 1], got {request.top_p}.", "top_p", request.top_p)
    if request.top_k is not None and request.top_k < -1:
        raise ApiError(400, f"top_k must be 0 (disable), or at least 1, got {request.top_k}.")
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(request, name)
        if value is not None and not -2 <= value <= 2:
            raise ApiError(400, f"{name} must be in [-2, 2], got {value}.")
    if request.min_tokens < 0:
        raise ApiError(400, f"min_tokens must be greater than or equal to 0, got {request.min_tokens}.")
    if any(stop == "" for stop in stops(request)):
        raise ApiError(400, "stop cannot contain an empty string.")
    if request.stream_options is not None and not request.stream:
        raise refused("Stream options can only be defined when `stream=True`.", "stream_options")
    form = request.response_format
    if form and form.type == "json_schema" and form.json_schema is None:
        words = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
        raise refused(words, "response_format")


def stops(request: GenerationRequest) -> list[str]:
    """The stop strings, however they were given."""
    return [request.stop] if isinstance(request.stop, str) else list(request.stop or [])
