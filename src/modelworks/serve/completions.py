"""A request's way: checked, encoded, handed to the worker, and told back whole or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError

from modelworks.base.errors import UserError
from modelworks.infer.sampling import Sampling, generators
from modelworks.infer.scheduler import Generation

from .answers import Shape, grounded, line, slices, usage
from .errors import ApiError, from_validation
from .registry import Registry
from .schemas import Asked, ChatRequest, CompletionRequest
from .settings import ServeSettings
from .worker import Job, Logprob, Worker

A = TypeVar("A", bound=Asked)
T = TypeVar("T")


class Completions:
    """The two endpoints that generate."""

    def __init__(self, registry: Registry, worker: Worker, settings: ServeSettings) -> None:
        self.registry, self.worker, self.settings = registry, worker, settings

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = await _read(request, ChatRequest)
        entry = self.registry.find(asked.model)
        messages = [turn.plain() for turn in asked.messages]
        if hasattr(entry, "answer"):
            return await self._grounded(request, asked, entry, messages)
        prompt = await _encode(lambda: entry.chat_prompt(messages))
        extra: dict[str, Any] = {}
        if asked.logprobs:
            extra = {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
        generations = self._generations(asked, entry, [prompt], self.settings.default_tokens, extra)
        job = self.worker.submit(Job(asked.model, entry, generations))
        return await self._reply(request, asked, job, Shape(True, asked.model, entry.tokenizer))

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        asked = await _read(request, CompletionRequest)
        entry = self.registry.find(asked.model)
        if hasattr(entry, "answer"):
            raise ApiError(400, "this model answers from passages only; use /v1/chat/completions.", param="model")
        prompts = asked.prompts()
        if len(prompts) * (asked.n or 1) > 16:
            raise ApiError(400, "prompts times n may be 16 at most.", "invalid_value", "n")
        encoded = await _encode(lambda: [entry.encode(p) if isinstance(p, str) else p for p in prompts])
        extra = {} if asked.logprobs is None else {"logprobs": True, "top_logprobs": asked.logprobs}
        generations = self._generations(asked, entry, encoded, 16, extra)
        job = self.worker.submit(Job(asked.model, entry, generations))
        return await self._reply(request, asked, job, Shape(False, asked.model, entry.tokenizer))

    def _generations(
        self, asked: Asked, entry: Any, prompts: list[list[int]], default: int, extra: dict[str, Any]
    ) -> list[Generation]:
        wanted = asked.wanted() or min(default, self.settings.max_tokens)
        if wanted > self.settings.max_tokens:
            raise ApiError(
                400, f"at most {self.settings.max_tokens} tokens may be asked for.", "invalid_value", "max_tokens"
            )
        given = {"seed": secrets.randbits(63), **asked.sampling(), **extra, "max_new_tokens": wanted}
        try:
            settings = Sampling(**given)
            copies = [prompt for prompt in prompts for _ in range(asked.n or 1)]
            rngs = generators(copies, settings.seed)
            adapter = getattr(entry, "adapter", None)
            return [entry.engine.generation(p, settings, rng, adapter) for p, rng in zip(copies, rngs, strict=True)]
        except ValidationError as error:
            raise from_validation(error) from None
        except UserError as error:
            code = "context_length_exceeded" if "context" in str(error) else "invalid_value"
            raise ApiError(400, str(error), code, "messages" if isinstance(asked, ChatRequest) else "prompt") from None

    async def _reply(self, request: Request, asked: Asked, job: Job, shape: Shape) -> Response:
        if asked.stream:
            return StreamingResponse(self._stream(asked, job, shape), media_type="text/event-stream")
        texts: list[list[str]] = [[] for _ in job.generations]
        logprobs: list[list[Logprob]] = [[] for _ in job.generations]

        async def collect() -> None:
            async for event in job.events():
                texts[event.index].append(event.text)
                if event.logprob:
                    logprobs[event.index].append(event.logprob)

        await _while_wanted(request, collect(), job)
        choices = [shape.choice(i, "".join(texts[i]), g.reason, logprobs[i]) for i, g in enumerate(job.generations)]
        return JSONResponse(shape.whole(choices, self._usage(asked, job)))

    async def _stream(self, asked: Asked, job: Job, shape: Shape) -> AsyncIterator[str]:
        try:
            if shape.chat:
                for index in range(len(job.generations)):
                    yield line(shape.chunk(index, {"role": "assistant", "content": ""}))
            waiting: list[list[Logprob]] = [[] for _ in job.generations]
            async for event in job.events():
                if event.logprob:
                    waiting[event.index].append(event.logprob)
                if event.text or waiting[event.index]:
                    yield line(shape.chunk(event.index, {"content": event.text}, None, waiting[event.index]))
                    waiting[event.index] = []
                if event.reason:
                    yield line(shape.chunk(event.index, {}, event.reason))
            if asked.stream_options and asked.stream_options.include_usage:
                yield line(shape.closing(self._usage(asked, job)))
            yield line("[DONE]")
        except ApiError as error:
            yield line(error.body())
        finally:
            job.gone = True  # also where the client went away: the worker drops what is left

    def _usage(self, asked: Asked, job: Job) -> dict[str, int]:
        read = sum(len(g.prompt) for g in job.generations) // (asked.n or 1)  # copies share their prompt
        return usage(read, sum(len(g.tokens) for g in job.generations))

    async def _grounded(self, request: Request, asked: ChatRequest, entry: Any, messages: list[Any]) -> Response:
        """An assistant's answer: written and checked whole, then told; sampling settings do not touch it."""
        if (asked.n or 1) != 1 or asked.logprobs:
            raise ApiError(400, "this model gives one checked answer; n must be 1 and logprobs off.", param="n")
        if messages[-1]["role"] != "user":
            raise ApiError(400, "the last message must be the user's.", "invalid_value", "messages")
        job = self.worker.submit(Job(asked.model, entry, call=lambda: entry.answer(messages)))
        shape = Shape(True, asked.model, entry.tokenizer)

        async def result() -> Any:
            return [event.result async for event in job.events()][-1]

        def counted(text: str) -> dict[str, int]:
            read = sum(len(entry.tokenizer.encode(message["content"])) for message in messages)
            return usage(read, len(entry.tokenizer.encode(text)))

        async def stream() -> AsyncIterator[str]:
            try:
                yield line(shape.chunk(0, {"role": "assistant", "content": ""}))
                answer = await result()
                for piece in slices(answer.text):
                    yield line(shape.chunk(0, {"content": piece}))
                    await asyncio.sleep(0)
                yield line(shape.chunk(0, grounded(answer), "stop"))
                if asked.stream_options and asked.stream_options.include_usage:
                    yield line(shape.closing(counted(answer.text)))
                yield line("[DONE]")
            except ApiError as error:
                yield line(error.body())
            finally:
                job.gone = True

        if asked.stream:
            return StreamingResponse(stream(), media_type="text/event-stream")
        answer = await _while_wanted(request, result(), job)
        choice = shape.choice(0, answer.text, "stop", [], grounded(answer))
        return JSONResponse(shape.whole([choice], counted(answer.text)))


async def _read(request: Request, kind: type[A]) -> A:
    """The request's body as `kind`. Raises ApiError for another content type, or what does not fit."""
    content = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content != "application/json":  # also keeps out forms, which a foreign page could send without being asked
        raise ApiError(415, "send the body as application/json.", "invalid_content_type")
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise from_validation(error) from None


async def _encode(work: Any) -> Any:
    """Tokenise beside the event loop: a megabyte of text takes a while."""
    return await asyncio.to_thread(work)


async def _while_wanted(request: Request, work: Coroutine[Any, Any, T], job: Job) -> T:
    """The result of `work`, which is given up when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client closed the request.", "client_closed")
        return task.result()
    finally:
        job.gone = True
        for one in (task, gone):
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await one


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
