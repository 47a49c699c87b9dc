"""The requests that are understood. Every number, text and list has a ceiling, checked before any work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TEXT = 1_000_000  # characters; the body's own limit is of that size
IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
    "reasoning_effort", "verbosity",
}  # fmt: skip
"""Fields of OpenAI's API that change nothing about an answer here."""
EMPTY: dict[str, list[Any]] = {
    "tools": [None, []], "tool_choice": [None, "none", "auto"], "functions": [None, []],
    "function_call": [None, "none"], "response_format": [None, {"type": "text"}],
    "logit_bias": [None, {}], "frequency_penalty": [None, 0],
    "presence_penalty": [None, 0], "modalities": [None, ["text"]], "audio": [None], "prediction": [None],
    "web_search_options": [None], "suffix": [None, ""], "echo": [None, False], "best_of": [None, 1],
}  # fmt: skip
"""Fields that are accepted while they ask for nothing that we do not do."""

Short = Annotated[str, Field(max_length=200)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Token = Annotated[int, Field(ge=0, le=10_000_000)]


class Part(BaseModel):
    """A piece of a message; only text is understood."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str = Field(max_length=TEXT)


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=TEXT)] | Annotated[list[Part], Field(max_length=64)] | None = None
    name: Short | None = None
    refusal: None = None
    citations: list[Any] | None = Field(None, max_length=64)
    grounding: Short | None = None

    def plain(self) -> dict[str, str]:
        """The message as the chat format takes it."""
        text = self.content
        if isinstance(text, list):
            text = "".join(part.text for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": text or ""}


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of request share. Raises ValueError for a field that would change the answer and is not done."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    model: str = Field(min_length=1, max_length=200)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=8)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=0, le=10_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)

    @model_validator(mode="after")
    def _others(self) -> Asked:
        for key, value in (self.model_extra or {}).items():
            if key in IGNORED:
                continue
            if key not in EMPTY:
                raise ValueError(f"unrecognized request argument: {key[:100]}")
            if value not in EMPTY[key]:
                raise ValueError(f"{key} is not supported by this server")
        return self

    def wanted(self) -> int | None:
        """How many tokens at most, where the request says so."""
        return self.max_tokens

    def sampling(self) -> dict[str, Any]:
        """The settings for `infer.sampling.Sampling` that were given."""
        keys = ("temperature", "top_p", "stop", "seed", "top_k", "min_p", "repetition_penalty")
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}


class ChatRequest(Asked):
    """POST /v1/chat/completions."""

    messages: list[Turn] = Field(min_length=1, max_length=512)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    def wanted(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Asked):
    """POST /v1/completions."""

    prompt: (
        Annotated[str, Field(max_length=TEXT)]
        | Annotated[list[Token], Field(min_length=1, max_length=200_000)]
        | Annotated[list[Annotated[str, Field(max_length=TEXT)]], Field(min_length=1, max_length=8)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1, max_length=200_000)]], Field(max_length=8)]
    )
    logprobs: int | None = Field(None, ge=0, le=5)

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or many."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [list(self.prompt)]  # type: ignore[arg-type]
        return list(self.prompt)  # type: ignore[arg-type]
