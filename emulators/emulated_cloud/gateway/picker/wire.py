"""The messages of ext_proc, made by field number: those that are read or written here.

Envoy's are protobuf files of many packages that import each other; a picker needs these few. Numbers:
envoyproxy/envoy api/envoy/service/ext_proc/v3/external_processor.proto and what it imports.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2
from google.protobuf.json_format import MessageToDict

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
OVERWRITE_IF_EXISTS_OR_ADD = 2
CHUNK_BYTES = 62_000
"""Of a body in one message: what the real picker sends at most, below Envoy's 64 KiB."""

# Message → fields: `name = number: type`, `*` repeated, `|` one of those that have it.
_MESSAGES = {
    "HeaderValue": "key=1:string value=2:string raw_value=3:bytes",
    "HeaderMap": "headers=1:*HeaderValue",
    "HttpHeaders": "headers=1:HeaderMap end_of_stream=3:bool",
    "HttpBody": "body=1:bytes end_of_stream=2:bool",
    "HttpTrailers": "trailers=1:HeaderMap",
    # A map on the wire.
    "FilterMetadata": "key=1:string value=2:Struct",
    "Metadata": "filter_metadata=1:*FilterMetadata",
    "ProcessingRequest": "request_headers=2:|HttpHeaders response_headers=3:|HttpHeaders request_body=4:|HttpBody "
    "response_body=5:|HttpBody request_trailers=6:|HttpTrailers response_trailers=7:|HttpTrailers "
    "metadata_context=8:Metadata",
    "HeaderValueOption": "header=1:HeaderValue append_action=3:int32",
    "HeaderMutation": "set_headers=1:*HeaderValueOption remove_headers=2:*string",
    "StreamedBodyResponse": "body=1:bytes end_of_stream=2:bool",
    "BodyMutation": "streamed_response=3:StreamedBodyResponse",
    "CommonResponse": "header_mutation=2:HeaderMutation body_mutation=3:BodyMutation clear_route_cache=5:bool",
    "HeadersResponse": "response=1:CommonResponse",
    "BodyResponse": "response=1:CommonResponse",
    "TrailersResponse": "header_mutation=1:HeaderMutation",
    "HttpStatus": "code=1:int32",
    "ImmediateResponse": "status=1:HttpStatus headers=2:HeaderMutation body=3:bytes",
    "ProcessingResponse": "request_headers=1:|HeadersResponse response_headers=2:|HeadersResponse "
    "request_body=3:|BodyResponse response_body=4:|BodyResponse request_trailers=5:|TrailersResponse "
    "response_trailers=6:|TrailersResponse immediate_response=7:|ImmediateResponse dynamic_metadata=8:Struct",
}
_SCALARS = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
}
_PACKAGE = "emulated_cloud.picker"


def _made() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="emulated_cloud/picker.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(struct_pb2.DESCRIPTOR.name)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            declared, _, kind = text.partition(":")
            field_name, _, number = declared.partition("=")
            field = message.field.add(name=field_name, number=int(number))
            repeated, one_of, kind = kind.startswith("*"), kind.startswith("|"), kind.lstrip("*|")
            proto = descriptor_pb2.FieldDescriptorProto
            field.label = proto.LABEL_REPEATED if repeated else proto.LABEL_OPTIONAL
            if one_of:
                if not message.oneof_decl:
                    message.oneof_decl.add(name="kind")
                field.oneof_index = 0
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = proto.TYPE_MESSAGE
                field.type_name = ".google.protobuf.Struct" if kind == "Struct" else f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.Default()
    pool.Add(file)
    found = pool.FindFileByName(file.name)
    return {name: message_factory.GetMessageClass(found.message_types_by_name[name]) for name in _MESSAGES}


_CLASSES = _made()
# Made at run time: what is in them is in the table above.
ProcessingRequest: Any = _CLASSES["ProcessingRequest"]
ProcessingResponse: Any = _CLASSES["ProcessingResponse"]


def headers_of(message: Any) -> dict[str, str]:
    """HttpHeaders as a dict with names in lower case."""
    return {
        header.key.lower(): header.raw_value.decode("utf-8", "replace") if header.raw_value else header.value
        for header in message.headers.headers
    }


def metadata_of(request: Any, namespace: str) -> dict[str, Any] | None:
    """What Envoy says of a request below a namespace of its dynamic metadata; None when it says nothing."""
    for entry in request.metadata_context.filter_metadata:
        if entry.key == namespace:
            found: dict[str, Any] = MessageToDict(entry.value)
            return found
    return None


def set_headers(mutation: Any, headers: dict[str, str]) -> None:
    for key, value in headers.items():
        option = mutation.set_headers.add(append_action=OVERWRITE_IF_EXISTS_OR_ADD)
        option.header.key, option.header.raw_value = key, value.encode()


def body_messages(side: str, body: bytes, end_of_stream: bool) -> list[Any]:
    """`body` as the answers to `side` (request_body or response_body) of at most CHUNK_BYTES; one, if it is empty."""
    answers = []
    for start in range(0, max(len(body), 1), CHUNK_BYTES):
        answer = ProcessingResponse()
        streamed = getattr(answer, side).response.body_mutation.streamed_response
        streamed.body = body[start : start + CHUNK_BYTES]
        streamed.end_of_stream = end_of_stream and start + CHUNK_BYTES >= len(body)
        answers.append(answer)
    return answers


def immediate(status: int, body: str) -> Any:
    """The answer that ends an HTTP request here."""
    answer = ProcessingResponse()
    answer.immediate_response.status.code = status
    answer.immediate_response.body = body.encode()
    return answer
