"""The fields of requests, each typed and bounded, and the shape of errors.

The names are OpenAI's, or vLLM's where OpenAI has none, unless marked as ours. Both kinds of completion share all fields that
make sense for both. A field that is not supported accepts only the value that changes nothing, and null is always such a value.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_TEXT = 131_072
"""The most characters of one text, and the most tokens of one prompt."""
MAX_TOKENS = 65_536
MAX_SAMPLES = 64
"""The most samples of one request, as its ``n`` or its plan's."""
MAX_TOP = 20
"""The most likeliest tokens of one place."""


class Strict(BaseModel):
    """A model that takes no unknown fields, unless they are null, and converts nothing: ``"5"`` is not 5."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_unknown_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None or name in cls.model_fields}


def _false(value: bool) -> bool:
    """Accept only false. (``Literal[False]`` would accept 0, too.)"""
    if value:
        raise ValueError("true is not supported")
    return value


def _true(value: bool) -> bool:
    """Accept only true."""
    if not value:
        raise ValueError("false is not supported")
    return value


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=MAX_TEXT)]
Label = Annotated[str, Field(max_length=256)]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[float, Field(ge=1, le=1)]
Nothing = Annotated[dict[str, Any], Field(max_length=0)]
NoItems = Annotated[list[Any], Field(max_length=0)]
AlwaysFalse = Annotated[bool, AfterValidator(_false), Field(json_schema_extra={"const": False})]
AlwaysTrue = Annotated[bool, AfterValidator(_true), Field(json_schema_extra={"const": True})]


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    """A message as clients write it, or as a reply has it: appended to ``messages``, ours and other servers' are accepted."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    name: Annotated[str, Field(max_length=64)] | None = None
    type: Literal["text", "message"] | None = None
    tool_calls: NoItems | None = None
    annotations: NoItems | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: AlwaysFalse | None = None
    continuous_usage_stats: AlwaysFalse | None = None


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
    """The fields of both kinds of completion."""

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
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(
        None, description="Sample from the k likeliest tokens only, as in vLLM; -1 or 0: from all."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Leave out tokens less likely than this share of the likeliest one, as in vLLM."
    )
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=64)] | None = Field(
        None, description="Tokens that end a completion, as in vLLM. The token that ends it is its last."
    )
    ignore_eos: bool | None = Field(None, description="End at stop_token_ids and stop only, as in vLLM.")
    return_tokens_as_token_ids: bool | None = Field(
        None, description="Name the tokens in logprobs token_id:7, as in vLLM."
    )
    seed: Annotated[int, Field(ge=0, le=2**62)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    repetition_penalty: One | None = None
    length_penalty: One | None = None
    min_tokens: Annotated[int, Field(ge=0, le=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    use_beam_search: AlwaysFalse | None = None
    include_stop_str_in_output: AlwaysFalse | None = None
    skip_special_tokens: AlwaysTrue | None = None
    spaces_between_special_tokens: AlwaysTrue | None = None
    logit_bias: Nothing | None = None
    metadata: Annotated[dict[str, Label], Field(max_length=16)] | None = None
    user: Label | None = None
    service_tier: Literal["auto", "default"] | None = None
    extra_body: Nothing | None = None  # its_hub sends an empty one

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a sample."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """The most tokens of a completion."""
        return self.max_tokens

    @property
    def drawing(self) -> dict[str, Any]:
        """How to draw tokens, as far as the request says it, named as in ``Sampling`` and ``Plan``."""
        top_k = None if self.top_k is None else max(self.top_k, 0)
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": top_k, "min_p": self.min_p}
        return {name: value for name, value in given.items() if value is not None}

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
    continue_final_message: bool | None = Field(
        None, description="Continue the last message, an assistant's, as in vLLM. The reply's text is what follows it."
    )
    add_generation_prompt: bool | None = Field(None, description="As in vLLM: not continue_final_message.")
    chat_template_kwargs: Nothing | None = None
    echo: AlwaysFalse | None = None
    modalities: list[Literal["text"]] | None = None
    tools: NoItems | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: NoItems | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
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
    """A request cannot be served. Holds the HTTP status and the error in OpenAI's shape.

    ``retry_after`` is in seconds. ``close``: the connection ends with the reply, since what follows may be no request.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        if close:
            self.headers["connection"] = "close"

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "unavailable_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
