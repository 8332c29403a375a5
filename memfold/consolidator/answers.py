"""What an endpoint's answer means: pure functions over bytes that nobody has vouched for.

An answer is a summary, or a problem and what may be done about it. No problem repeats anything that the endpoint said, for that
may hold what was asked.
"""

from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, NamedTuple

import msgspec

SCHEMA = {
    "type": "object",
    "properties": {"summary": {"type": "string", "description": "the summary, as running text"}},
    "required": ["summary"],
    "additionalProperties": False,
}
"""What a model must answer, as it is told."""

CHARACTERS_A_TOKEN_MAX = 16
CHARACTERS_MIN = 400
BYTES_A_TOKEN = 4
AGAIN = {408, 409, 425, 429}
ADVICE = {
    301: "give the address that it leads to as base URL",
    302: "give the address that it leads to as base URL",
    307: "give the address that it leads to as base URL",
    308: "give the address that it leads to as base URL",
    401: "check the API key",
    403: "check what the API key may do",
    404: "check the base URL and the model",
    429: "it is over its rate or quota",
}
# The only words of an endpoint's that are repeated, for they can hold nothing but themselves.
CODES = {
    "billing_hard_limit_reached",
    "content_filter",
    "context_length_exceeded",
    "insufficient_quota",
    "invalid_api_key",
    "invalid_request_error",
    "model_not_found",
    "rate_limit_exceeded",
    "server_error",
    "unsupported_parameter",
    "unsupported_value",
}
HOPELESS = {"billing_hard_limit_reached", "insufficient_quota"}  # not within seconds, though perhaps within hours

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**40)]


class Charged(msgspec.Struct):
    """The tokens of one call, as the endpoint counts them."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class Receipt(msgspec.Struct):
    """The part of an answer that says what it cost."""

    usage: Charged


class Message(msgspec.Struct):
    """What the model said."""

    content: str | None = None
    refusal: str | None = None


class Choice(msgspec.Struct):
    """What the model said, and why it stopped."""

    message: Message
    finish_reason: str | None = None


class Completion(msgspec.Struct):
    """The part of an answer that says something."""

    choices: Annotated[list[Choice], msgspec.Meta(min_length=1)]


class Reply(msgspec.Struct):
    """What the model was to say, by `SCHEMA`."""

    summary: str


class Error(msgspec.Struct):
    """The part of an error that is a word of a protocol."""

    code: str | int | None = None
    type: str | None = None


class Complaint(msgspec.Struct):
    """The body of an error."""

    error: Error


class Meaning(NamedTuple):
    """What a call came to: a text, or a problem.

    `again`: the same call may succeed in seconds. `retry`: another try may help, later. `wait_s`: what the endpoint asks for.
    """

    text: str | None = None
    problem: str = ""
    again: bool = False
    retry: bool = False
    wait_s: float | None = None


def said(body: bytes, target_tokens: int) -> Meaning:  # noqa: PLR0911
    """What a completion says."""
    try:
        choice = msgspec.json.decode(body, type=Completion).choices[0]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Meaning(problem="was answered with something that is no chat completion", retry=True)
    content = (choice.message.content or "").strip()
    if choice.message.refusal:
        return Meaning(problem="refused")
    if choice.finish_reason == "content_filter":
        return Meaning(problem="was stopped by a content filter")
    if choice.finish_reason == "length":
        return Meaning(problem="ran out of tokens before it was done", retry=True)
    if not content:
        return Meaning(problem="answered nothing", retry=True)
    try:
        text = msgspec.json.decode(content, type=Reply).summary.strip()
    except msgspec.ValidationError:
        return Meaning(problem="answered with JSON that does not follow the schema", retry=True)
    except (msgspec.DecodeError, UnicodeError):
        return Meaning(problem="answered with something that is no JSON", retry=True)
    if not text:
        return Meaning(problem="answered nothing", retry=True)
    if len(text) > max(CHARACTERS_MIN, CHARACTERS_A_TOKEN_MAX * target_tokens):
        return Meaning(problem="answered with far more than was asked for", retry=True)
    return Meaning(text)


def refused(status: int, body: bytes, *, retry_after: str | None, now: datetime) -> Meaning:
    """What an answer means that is no success, by its status."""
    code = _code(body)
    reason = ", ".join(filter(None, [code, ADVICE.get(status, "")]))
    problem = f"was answered with status {status}" + (f" ({reason})" if reason else "")
    retry = status in AGAIN or status >= 500
    return Meaning(problem=problem, again=retry and code not in HOPELESS, retry=retry, wait_s=seconds(retry_after, now))


def charged(body: bytes) -> Charged | None:
    """What an answer says it cost; None if it does not say."""
    try:
        return msgspec.json.decode(body, type=Receipt).usage
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def about_tokens(size_bytes: int) -> int:
    """Roughly how many tokens a text of this size has, for a call whose endpoint does not say."""
    return -(-size_bytes // BYTES_A_TOKEN)


def seconds(retry_after: str | None, now: datetime) -> float | None:
    """What a Retry-After header asks for, in seconds from now; None if it asks for nothing that can be told."""
    if not retry_after:
        return None
    if retry_after.strip().isdecimal():
        return min(float(retry_after), 1e9)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):  # no date, or one without a zone
        return None


def _code(body: bytes) -> str | None:
    try:
        error = msgspec.json.decode(body, type=Complaint).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return next((word for word in (error.code, error.type) if isinstance(word, str) and word in CODES), None)
