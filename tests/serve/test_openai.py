"""The API as the official client sees it, over a real socket and a tiny real model."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
openai = pytest.importorskip("openai", reason="needs the extra `dev`")

from ..infer.tiny import language_model  # noqa: E402
from .running import serving  # noqa: E402

ASK = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with serving(api_keys=["sesame"]) as (url, _, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0, timeout=60)


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "desk"]
    desk = client.models.retrieve("desk")
    assert desk.object == "model" and desk.title == "Desk" and desk.grounded


def test_chat_is_what_the_model_says(client: Any) -> None:
    model = language_model()
    reply = client.chat.completions.create(model="tiny", messages=ASK, temperature=0, max_tokens=12)
    prompt = model.chat_prompt(ASK)
    sample = model.engine.sample([prompt], 12, temperature=0)[0]
    assert reply.choices[0].message.content == sample.text
    assert reply.choices[0].finish_reason == sample.reason
    assert reply.usage.prompt_tokens == len(prompt) and reply.usage.completion_tokens == len(sample.tokens)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@pytest.mark.parametrize("seed", range(4))
def test_streams_equal_whole_answers(client: Any, seed: int) -> None:
    asked = {"model": "tiny", "messages": ASK, "seed": seed, "max_tokens": 40, "n": 2, "stop": ["e", "好"]}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts, reasons = ["", ""], ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert not any(stop in text for text in texts for stop in asked["stop"])
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices


def test_completions_with_several_prompts_and_streamed(client: Any) -> None:
    model = language_model()
    whole = client.completions.create(model="tiny", prompt=["def answer", "你好"], temperature=0, max_tokens=9)
    want = [model.generate(p, temperature=0, max_new_tokens=9) for p in ("def answer", "你好")]
    assert [choice.text for choice in whole.choices] == want
    ids = model.tokenizer.encode("def answer")
    assert client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=9).choices[0].text == want[0]
    stream = client.completions.create(model="tiny", prompt="你好", temperature=0, max_tokens=9, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == want[1]


def test_logprobs(client: Any) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=ASK, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    for word in reply.choices[0].logprobs.content:
        assert word.logprob <= 0 and len(word.top_logprobs) == 3
        assert word.top_logprobs[0].logprob == pytest.approx(word.logprob)  # greedy took the likeliest
    said = client.completions.create(model="tiny", prompt="def", max_tokens=3, logprobs=2, temperature=0)
    assert len(said.choices[0].logprobs.token_logprobs) == said.usage.completion_tokens


def test_an_assistant_shows_its_citations(client: Any) -> None:
    whole = client.chat.completions.create(model="desk", messages=ASK)
    message = whole.choices[0].message
    assert message.content == "It joins paths. 它连接路径。\n\nSee [1]."
    assert message.grounding == "own"
    assert message.citations == [{"id": "p1", "title": "join", "text": "Join two.", "source": "os.py"}]
    chunks = list(client.chat.completions.create(model="desk", messages=ASK, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert len(chunks) > 5
    assert chunks[-1].choices[0].delta.citations == message.citations
    assert chunks[-1].choices[0].delta.grounding == "own" and chunks[-1].choices[0].finish_reason == "stop"


def test_many_at_once_get_what_each_gets_alone(client: Any) -> None:
    def ask(i: int) -> str:
        asked = {"model": "tiny", "prompt": f"fox {i}" * (1 + i), "seed": i, "max_tokens": 5 + 2 * i}
        if i % 2:
            return "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
        return client.completions.create(**asked).choices[0].text

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(12)))
    assert together == [
        language_model().generate(f"fox {i}" * (1 + i), seed=i, max_new_tokens=5 + 2 * i) for i in range(12)
    ]


def test_errors_are_the_clients_own_classes(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="tinny", messages=ASK)
    assert missing.value.code == "model_not_found" and "did you mean 'tiny'" in missing.value.body["message"]
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="long " * 500)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="tiny", messages=ASK, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]
        )
    assert "tools" in tools.value.body["message"]
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="desk", prompt="x")
