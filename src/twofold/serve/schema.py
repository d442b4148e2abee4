"""The fields of requests, each typed and bounded, and the shape of errors. The names are OpenAI's unless marked as ours."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_TEXT = 131_072
"""The most characters of one text, and the most tokens of one prompt."""
MAX_TOKENS = 65_536
MAX_SAMPLES = 64
"""The most samples of one request, as its ``n`` or its plan's."""
MAX_TOP = 20
"""The most likeliest tokens of one place."""


class Strict(BaseModel):
    """A model that takes no unknown fields and converts nothing: ``"5"`` is not 5."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _false(value: bool) -> bool:
    """Accept only false. (``Literal[False]`` would accept 0, too.)"""
    if value:
        raise ValueError("true is not supported")
    return value


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=MAX_TEXT)]
Zero = Annotated[float, Field(ge=0, le=0)]
AlwaysFalse = Annotated[bool, AfterValidator(_false), Field(json_schema_extra={"const": False})]


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    name: Annotated[str, Field(max_length=64)] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: AlwaysFalse | None = None


class ResponseFormat(Strict):
    type: Literal["text"]


Option = Annotated[str, Field(pattern=r"^[a-z_][a-z_.]{0,39}$")]
Number = Annotated[float, Field(ge=-(2**62), le=2**62)]
Word = Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
PlanOptions = Annotated[
    dict[Option, int | Number | Word | Annotated[list[int | Number], Field(min_length=1, max_length=32)]],
    Field(max_length=32, examples=[{"rule": "weighted", "n": 16}]),
]
"""A plan's rule, n and options, named as in its short form."""


class Request(Strict):
    """The fields of both kinds of completion. A field that is not supported accepts only the value that changes nothing."""

    model: Annotated[str, Field(min_length=1, max_length=1256)]
    plan: Annotated[str, Field(min_length=1, max_length=1000)] | PlanOptions | None = Field(
        None, description="How to spend test-time compute (ours). May instead follow the model's name and a colon."
    )
    timeout: Annotated[float, Field(gt=0, le=3600)] | None = Field(
        None, description="Seconds after which the request is answered with what there is (ours)."
    )
    progress: Literal["counts", "samples"] | None = Field(
        None,
        description="What a stream with a plan reports while it runs (ours): counts, or every sample's text as well.",
    )
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=1e-6, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**62)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    extra_body: Annotated[dict[str, Any], Field(max_length=0)] | None = None  # its_hub sends an empty one

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a sample."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """The most tokens of a completion."""
        return self.max_tokens

    @property
    @abstractmethod
    def top(self) -> int:
        """Return the number of likeliest tokens to return in each place."""


class ChatRequest(Request):
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    store: AlwaysFalse | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int:
        return self.top_logprobs or 0


class TextRequest(Request):
    """``logprobs = 0`` returns the log-probs of the tokens themselves, ``logprobs = k`` those of the k likeliest as well."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_SAMPLES)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_SAMPLES)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    echo: bool | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=64)] | None = Field(
        None, description="Tokens that end a completion, as in vLLM. The token that ends it is its last."
    )
    top_k: Annotated[int, Field(ge=-1, le=0)] | None = Field(
        None, description="Not supported: only values that mean all tokens are accepted."
    )
    min_p: Zero | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    ignore_eos: bool | None = Field(None, description="End at stop_token_ids and stop only, as in vLLM.")
    return_tokens_as_token_ids: bool | None = Field(
        None, description="Name the tokens in logprobs token_id:7, as in vLLM."
    )

    @property
    def top(self) -> int:
        return self.logprobs or 0


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    error: ErrorBody


class Refused(Exception):
    """A request cannot be served. Holds the HTTP status and the error in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "unavailable_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
