"""What GCS answers when it refuses, in the words of the JSON and of the XML API."""

from __future__ import annotations

from xml.sax.saxutils import escape


class GcsError(Exception):
    """A refusal. `reason` and `message` are the JSON API's, `xml_code` the XML API's.

    `plain`: the service answers this one as bare text in both APIs.
    """

    def __init__(self, status: int, reason: str, message: str, xml_code: str = "InvalidArgument", plain: bool = False):
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.xml_code, self.plain = xml_code, plain

    def as_json(self) -> dict:
        error = {"message": self.message, "domain": "global", "reason": self.reason}
        if self.reason == "conditionNotMet":
            error |= {"locationType": "header", "location": "If-Match"}
        return {"error": {"code": self.status, "message": self.message, "errors": [error]}}

    def as_xml(self) -> str:
        return (
            f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{self.xml_code}</Code>"
            f"<Message>{escape(self.message)}</Message><Details>{escape(self.message)}</Details></Error>"
        )


def no_such_bucket() -> GcsError:
    return GcsError(404, "notFound", "The specified bucket does not exist.", "NoSuchBucket")


def no_such_object(bucket: str, name: str) -> GcsError:
    return GcsError(404, "notFound", f"No such object: {bucket}/{name}", "NoSuchKey")


def precondition_failed() -> GcsError:
    message = "At least one of the pre-conditions you specified did not hold."
    return GcsError(412, "conditionNotMet", message, "PreconditionFailed")


def not_modified() -> GcsError:
    return GcsError(304, "notModified", "", "NotModified")


def invalid(message: str) -> GcsError:
    return GcsError(400, "invalid", message)


def required(what: str) -> GcsError:
    return GcsError(400, "required", f"Required parameter: {what}")


def bad_digest(kind: str, provided: str, calculated: str) -> GcsError:
    message = f'Provided {kind} "{provided}" doesn\'t match calculated {kind} "{calculated}".'
    return GcsError(400, "invalid", message, "BadDigest")
