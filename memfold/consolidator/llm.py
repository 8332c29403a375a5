"""A summarizer that asks a language model, through any endpoint that speaks OpenAI's chat completions. The door of `openai`.

Where the endpoint is, which model and which key, is for the operator to say; no memory, policy or user can. What comes back is
text from a stranger: it is read up to a limit, checked against a schema, and never run. Each call has a time-out, and all calls
of a window together have one; what can be retried is, a few times, with growing pauses. Every call is charged for, whatever
came of it.

The client is made anew for each call: a call takes seconds, the client milliseconds, and so threads and forks share nothing.
"""

import random
import re
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from threading import Timer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from memfold.consolidator import answers, prompt
from memfold.consolidator.answers import Meaning
from memfold.consolidator.summarizer import Summary, Usage, Window
from memfold.errors import SettingsError, SummarizerFailed
from memfold.settings import Environment, Settings

OPENAI = "https://api.openai.com/v1"
BODY_BYTES_MAX = 1_000_000
PAUSE_S_MAX = 20.0
NO_KEY = "none"  # the client wants one, and would else look for OpenAI's in the environment
_WORD = re.compile(r"[\x21-\x7e]+")


class Prices(NamedTuple):
    """What a million tokens cost, read and written, in any currency."""

    prompt: float = 0.0
    completion: float = 0.0


class LLMSummarizer:
    """Says a window in fewer words by asking a language model.

    - `base_url`, `model`, `api_key`: the endpoint; it may have no key.
    - `timeout_s`: of one call; `total_timeout_s`: of all calls and pauses for one window.
    - `retries_max`: calls beyond the first; `pause_s`: before the first of them, doubled before each other.
    - `prices`: for `Usage.cost`.
    - `completion_tokens_max`: of one answer, thinking included.

    Raises:
        SettingsError: one of these is unusable, or the `openai` package is not installed.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str = OPENAI,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        total_timeout_s: float = 180.0,
        retries_max: int = 3,
        pause_s: float = 0.5,
        prices: tuple[float, float] = (0.0, 0.0),
        completion_tokens_max: int = 4_096,
    ) -> None:
        _check(base_url, model, api_key)
        for name, value, least in (
            ("timeout_s", timeout_s, 0.001),
            ("total_timeout_s", total_timeout_s, 0.001),
            ("retries_max", retries_max, 0),
            ("pause_s", pause_s, 0),
            ("completion_tokens_max", completion_tokens_max, 1),
        ):
            if not value >= least:
                raise SettingsError(name, f"must be at least {least:g}")
        self.name = f"llm:{model}"
        self._model = model
        self._base_url = base_url
        self._api_key = api_key or NO_KEY
        self._timeout_s = timeout_s
        self._total_timeout_s = total_timeout_s
        self._retries_max = retries_max
        self._pause_s = pause_s
        self._prices = Prices(*prices)
        self._completion_tokens_max = completion_tokens_max

    def __repr__(self) -> str:
        return f"LLMSummarizer({self._model!r})"

    def summarize(self, window: Window) -> Summary:
        """The window in about as many tokens as it asks for; as the model says it, so `cleaned` has the last word.

        Raises:
            SummarizerFailed: the model could not be asked, or said nothing that can be used; `usage` is what it cost.
        """
        messages = prompt.messages(window)
        deadline = time.monotonic() + self._total_timeout_s
        usage = Usage()
        for tries in range(1, self._retries_max + 2):
            left_s = deadline - time.monotonic()
            meaning, spent = self._call(messages, window.target_tokens, min(self._timeout_s, max(left_s, 0.01)))
            usage = usage.plus(spent)
            if meaning.text is not None:
                return Summary(meaning.text, usage)
            pause_s = pause(tries, self._pause_s, meaning.wait_s, random.uniform(0.5, 1.0))  # noqa: S311
            if not meaning.again or tries > self._retries_max or time.monotonic() + pause_s >= deadline:
                break
            time.sleep(pause_s)
        problem = meaning.problem if tries == 1 else f"{meaning.problem}, at the last of {tries} tries"
        raise SummarizerFailed(self.name, problem, retry=meaning.retry, usage=usage)

    def _call(self, messages: list[dict[str, str]], target_tokens: int, timeout_s: float) -> tuple[Meaning, Usage]:
        """Ask once."""
        exchange = _Exchange()
        meaning = self._ask(exchange, messages, timeout_s)
        if meaning is None:
            if exchange.status == 200:
                meaning = answers.said(exchange.body, target_tokens)
            else:
                meaning = answers.refused(
                    exchange.status, exchange.body, retry_after=exchange.retry_after, now=datetime.now(UTC)
                )
        return meaning, self._usage(exchange, messages)

    def _ask(self, exchange: "_Exchange", messages: list[dict[str, str]], timeout_s: float) -> Meaning | None:
        """Send the question and take what comes back into `exchange`; says what went wrong on the way, if anything did."""
        openai = _library()
        # A redirect is not followed: it would take what memories say to somebody whom the operator did not name.
        http_client = openai.DefaultHttpxClient(
            follow_redirects=False,
            timeout=timeout_s,
            event_hooks={"request": [exchange.watch], "response": [exchange.take]},
        )
        client = openai.OpenAI(
            base_url=self._base_url, api_key=self._api_key, max_retries=0, timeout=timeout_s, http_client=http_client
        )
        # The client's time-out is of each read; an endpoint that sends a byte now and then would never run into it.
        watchdog = Timer(timeout_s, exchange.cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            with (
                client,
                client.chat.completions.with_streaming_response.create(
                    model=self._model,
                    messages=messages,
                    max_completion_tokens=self._completion_tokens_max,
                    response_format={
                        "type": "json_schema",
                        "json_schema": {"name": "summary", "strict": True, "schema": answers.SCHEMA},
                    },
                    extra_headers={"Accept-Encoding": "identity"},
                ),
            ):
                return None
        except _Unreadable as error:
            return Meaning(problem=str(error), retry=True)
        except _Refused:
            return None
        except _Cut:
            return _late(timeout_s)
        except openai.APIConnectionError as error:
            if exchange.was_cut or isinstance(error, openai.APITimeoutError):
                return _late(timeout_s)
            problem = "could not be reached" if not exchange.was_sent else "lost the connection before the answer was there"
            return Meaning(problem=problem, again=True, retry=True)
        finally:
            watchdog.cancel()

    def _usage(self, exchange: "_Exchange", messages: list[dict[str, str]]) -> Usage:
        """What a call cost: by what the endpoint says; else, unless it refused, by the size of what was sent and came back."""
        if not exchange.was_sent:
            return Usage()
        charged = answers.charged(exchange.body)
        if charged is None:
            if exchange.status >= 300:
                return Usage(calls=1)
            asked = sum(len(message["content"].encode()) for message in messages)
            charged = answers.Charged(answers.about_tokens(asked), answers.about_tokens(len(exchange.body)))
        cost = charged.prompt_tokens * self._prices.prompt + charged.completion_tokens * self._prices.completion
        return Usage(charged.prompt_tokens, charged.completion_tokens, cost / 1_000_000, 1)


def from_environment(environment: Environment, settings: Settings) -> LLMSummarizer | None:
    """The summarizer that the operator has configured; None if there is no model named.

    Raises:
        SettingsError: what is configured is unusable.
    """
    if environment.llm_model is None:
        return None
    return LLMSummarizer(
        model=environment.llm_model,
        base_url=environment.llm_base_url or OPENAI,
        api_key=environment.llm_api_key,
        timeout_s=settings.llm_timeout_s,
        total_timeout_s=settings.llm_total_timeout_s,
        retries_max=settings.llm_retries_max,
        prices=(settings.llm_prompt_price, settings.llm_completion_price),
    )


def pause(tries: int, first_s: float, wait_s: float | None, jitter: float) -> float:
    """How long to wait after so many tries: longer each time, and not less than the endpoint asks for."""
    growing: float = min(PAUSE_S_MAX, first_s * 2 ** (tries - 1)) * jitter
    return max(growing, wait_s or 0.0)


def _late(timeout_s: float) -> Meaning:
    return Meaning(problem=f"did not answer within {timeout_s:.3g} s", again=True, retry=True)


class _Unreadable(Exception):
    """An answer that is not read to its end. The message is what a summarizer's problem says."""


class _Refused(Exception):
    """An answer that is no success; it was taken, and the client need make nothing of it."""


class _Cut(Exception):
    """The end of an answer that we ended."""


class _Exchange:
    """One question and what came back, taken at the wire: before the client makes anything of it."""

    def __init__(self) -> None:
        self.was_sent = False
        self.was_cut = False
        self.status = 0
        self.retry_after: str | None = None
        self.body = b""
        self._socket: socket.socket | None = None

    def watch(self, request: Any) -> None:
        """Learn of the connection that a request is sent over."""
        request.extensions["trace"] = self._trace

    def take(self, response: Any) -> None:
        """Read an answer, up to a limit."""
        self.status = response.status_code
        self.retry_after = response.headers.get("retry-after")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _Unreadable("was answered with something compressed, which it did not ask for")
        chunks, size = [], 0
        for chunk in response.iter_raw():
            chunks.append(chunk)
            size += len(chunk)
            if size > BODY_BYTES_MAX:
                raise _Unreadable(f"was answered with more than {BODY_BYTES_MAX:,} bytes")
        if self.was_cut:  # an answer of no stated length looks as if it had ended by itself
            raise _Cut
        self.body = b"".join(chunks)
        if self.status != 200:
            raise _Refused

    def cut(self) -> None:
        """End the exchange, from another thread: whoever reads finds the end of the stream."""
        self.was_cut = True
        if self._socket is not None:
            # Of the plain socket, not of TLS, which is in use; and not closed, for its number could be somebody else's by then.
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _trace(self, name: str, info: dict[str, Any]) -> None:
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self.was_cut:
                self.cut()
        elif name.endswith(".send_request_body.started"):
            self.was_sent = True


def _check(base_url: str, model: str, api_key: str | None) -> None:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError("base_url", "must be an http or https URL, such as https://api.openai.com/v1")
    if not _WORD.fullmatch(model):
        raise SettingsError("model", "must be the name of a model: ASCII, without spaces")
    if api_key is not None and not _WORD.fullmatch(api_key):
        raise SettingsError("api_key", "must be ASCII, without spaces")
    _library()


def _library() -> Any:
    try:
        import openai
    except ImportError:
        raise SettingsError("summarizer", "needs the openai package: pip install 'memfold[llm]'") from None
    return openai
