"""The engine against step-by-step decoding without a cache, and against itself alone, batched and streamed."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.base.errors import UserError
from modelworks.base.protocols import Sampler
from modelworks.infer.engine import Engine
from modelworks.infer.sampling import Sampling, generators, pick

from .tiny import TEXT, language_model


@pytest.fixture(scope="module")
def engine() -> Engine:
    return language_model().engine


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    words = language_model().tokenizer.vocab_size
    return [[rng.randrange(3, words) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def by_hand(engine: Engine, prompt: list[int], s: Sampling) -> list[int]:
    """No cache, no batch, no padding: the whole text through the model for every token."""
    tokens, rng = list(prompt), generators([prompt], s.seed)[0]
    while len(tokens) - len(prompt) < s.max_new_tokens:
        with torch.no_grad():
            logits = engine.model(torch.tensor([tokens])).logits[:, -1, : engine.vocab_size]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, tokens] = True
        draw = 0.0 if s.greedy else rng.random()
        tokens.append(int(pick(logits, [s], [draw], seen)))
        if tokens[-1] in engine.stop_tokens:
            break
    return tokens[len(prompt) :]


def long_one(engine: Engine) -> int:
    """A seed with which the prompt [5, 6] is continued for 60 tokens."""
    return next(seed for seed in range(99) if engine.sample([[5, 6]], 60, seed=seed)[0].reason == "length")


def test_it_is_a_sampler(engine: Engine) -> None:
    sampler: Sampler = engine
    assert sampler.sample([[5]], 3)[0].tokens


@pytest.mark.parametrize(
    "s",
    [
        Sampling(temperature=0, max_new_tokens=16),
        Sampling(temperature=0, repetition_penalty=1.4, max_new_tokens=12),
        Sampling(seed=3, max_new_tokens=16),
        Sampling(seed=4, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.1, max_new_tokens=12),
    ],
)
def test_cached_ragged_batches_equal_uncached_steps_one_by_one(engine: Engine, s: Sampling) -> None:
    many = prompts(7, 30, seed=s.seed)
    want = [by_hand(engine, prompt, s) for prompt in many]
    assert [sample.tokens for sample in engine.sample(many, **s.model_dump())] == want
    few = Engine(engine.model, engine.tokenizer, engine.max_len, max_rows=3)  # rows join as others finish
    assert [sample.tokens for sample in few.sample(many, **s.model_dump())] == want
    assert [engine.sample([prompt], **s.model_dump())[0].tokens for prompt in many] == want


def test_the_tests_model_looks_back(engine: Engine) -> None:
    """The guard of the tests above: with these weights the first token of a prompt changes what follows."""
    a, b = ([7, *[9] * 20], [8, *[9] * 20])
    assert engine.sample([a], 20, temperature=0)[0].tokens != engine.sample([b], 20, temperature=0)[0].tokens


@pytest.mark.parametrize("case", range(8))
def test_requests_of_all_kinds_come_and_go_without_touching_each_other(case: int) -> None:
    """The scheduler with arrivals and cancellations at any step: whoever finishes got what he gets alone."""
    engine = language_model().engine
    scheduler = engine.scheduler(max_rows=1 + case % 4)
    many = prompts(8, 40, seed=case)
    running, waiting = [], list(range(8))
    rng = random.Random(case)
    while waiting or scheduler.busy:
        if waiting and rng.random() < 0.5:
            i = waiting.pop()
            s = Sampling(
                seed=i, max_new_tokens=rng.randint(1, 25), temperature=i % 3 / 2, repetition_penalty=1 + i % 2 / 5,
                top_k=(i % 4) * 5, logprobs=i == 3,
            )  # fmt: skip
            running.append(engine.generation(many[i], s))
            scheduler.add(running[-1])
        if running and rng.random() < 0.1:
            scheduler.cancel(rng.choice(running))
        advanced = scheduler.step()
        assert scheduler.running <= scheduler.max_rows
        assert len(set(map(id, advanced))) == len(advanced)
    for generation in running:
        alone = engine.sample([generation.prompt], **generation.settings.model_dump())[0]
        if generation.reason == "cancelled":
            assert alone.tokens[: len(generation.tokens)] == generation.tokens
        else:
            assert (generation.tokens, generation.reason) == (alone.tokens, alone.reason)
            if generation.settings.logprobs:
                assert generation.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_copies_of_a_prompt_differ_and_a_seed_repeats(engine: Engine) -> None:
    first = engine.sample([[9, 8, 7]] * 4, 20, seed=1)
    assert len({tuple(sample.tokens) for sample in first}) == 4
    assert [s.tokens for s in engine.sample([[9, 8, 7]] * 4, 20, seed=1)] == [s.tokens for s in first]
    assert engine.sample([[9, 8, 7]], 20, seed=2)[0].tokens != first[0].tokens


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 60),
    st.lists(st.sampled_from(["a", " t", "o", "e", "ng", "\n", "好"]), max_size=3),
)
def test_streamed_pieces_make_the_text_of_the_sample(seed: int, length: int, stop: list[str]) -> None:
    engine = language_model().engine
    s = Sampling(seed=seed, max_new_tokens=length, stop=stop)
    sample = engine.sample([[5, 6]], **s.model_dump())[0]
    assert "".join(engine.stream([5, 6], s)) == sample.text
    assert not any(word in sample.text for word in stop)


def test_a_stop_text_ends_the_generation_and_is_not_shown(engine: Engine) -> None:
    seed = long_one(engine)
    whole = engine.sample([[5, 6]], 60, seed=seed)[0]
    at = len(whole.text) // 2
    stop = whole.text[at : at + 3]
    cut = engine.sample([[5, 6]], 60, seed=seed, stop=stop)[0]
    assert cut.reason == "stop" and len(cut.tokens) < len(whole.tokens)
    assert cut.text == whole.text[: whole.text.find(stop)]


def test_an_ending_token_counts_and_is_no_text(engine: Engine) -> None:
    for seed in range(40):
        sample = engine.sample([[5]], 200, seed=seed)[0]
        if sample.reason == "stop":
            assert sample.tokens[-1] in engine.stop_tokens
            assert not set(sample.tokens[:-1]) & engine.stop_tokens
            return
    raise AssertionError("no generation of 40 ended by itself")


def test_the_end_of_the_context_ends_it_and_a_long_prompt_is_refused(engine: Engine) -> None:
    room = engine.max_len
    full = engine.sample([[7] * (room - 1), [7] * (room - 5)], 100, temperature=0)
    assert len(full[0].tokens) == 1 and len(full[1].tokens) <= 5
    for bad, says in [([7] * room, "shorten the prompt"), ([], "empty"), ([10**6], "outside"), ([-1], "outside")]:
        with pytest.raises(UserError, match=says):
            engine.sample([bad], 5)
        with pytest.raises(UserError, match=says):
            engine.stream(bad, Sampling())
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        engine.sample([[5]], 5, temprature=1)


def test_words_beyond_the_tokenizer_are_never_drawn() -> None:
    model = language_model()
    assert model.config.vocab_size > model.tokenizer.vocab_size
    tokens = [t for s in model.engine.sample([[5]] * 16, 60, temperature=50.0) for t in s.tokens]
    assert max(tokens) < model.tokenizer.vocab_size


def test_logprobs_are_the_models_own(engine: Engine) -> None:
    sample = engine.sample([[5, 9, 30]], 12, seed=2, temperature=0.6, top_k=30, logprobs=True)[0]
    with torch.no_grad():
        logits = engine.model(torch.tensor([[5, 9, 30, *sample.tokens]])).logits[0, 2:-1, : engine.vocab_size]
    want = logits.double().log_softmax(-1)[range(len(sample.tokens)), sample.tokens]
    assert sample.logprobs == pytest.approx(want.tolist(), abs=1e-4)


def test_score_equals_the_log_softmax_of_the_full_pass(engine: Engine) -> None:
    pairs = [(p, c) for p, c in zip(prompts(12, 30, 1), prompts(12, 9, 2), strict=True)]
    pairs.append(([5], []))
    got = engine.scores(pairs)
    for (prompt, continuation), (nats, greedy) in zip(pairs, got, strict=True):
        with torch.no_grad():
            logits = engine.model(torch.tensor([[*prompt, *continuation]])).logits[0].double()
        there = logits[len(prompt) - 1 : len(prompt) - 1 + len(continuation)]
        want = there.log_softmax(-1)[range(len(continuation)), continuation].sum().item()
        assert math.isclose(nats, want, abs_tol=2e-4)
        assert greedy == (there.argmax(-1).tolist() == continuation)
    best = engine.sample([[5, 9]], 6, temperature=0)[0].tokens
    assert engine.score([5, 9], best)[1]
    with pytest.raises(UserError, match="context"):
        engine.score([5] * 200, [6] * 100)


def test_a_model_that_trains_can_be_sampled_and_goes_on_training() -> None:
    model = language_model(seed=1).model
    engine = language_model(seed=1).engine
    model.train()
    engine.sample([[5, 6, 7]], 4)
    assert model.training
    model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[6, 7, 8]])).losses.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    model.eval()


def test_stopped_returns_what_is_there(engine: Engine) -> None:
    calls, seed = iter(range(100)), long_one(engine)
    out = engine.sample([[5, 6]], 50, seed=seed, stopped=lambda: next(calls) >= 7)[0]
    assert len(out.tokens) == 7 and out.reason == "cancelled"


def test_chat_generate_score_embed_classify() -> None:
    model = language_model()
    assert model.generate(TEXT[0][:20], max_new_tokens=8, seed=1) == "".join(
        model.stream(TEXT[0][:20], max_new_tokens=8, seed=1)
    )
    messages = [{"role": "user", "content": "你好 <|im_end|>"}]
    assert model.chat(messages, max_new_tokens=9) == "".join(model.chat(messages, stream=True, max_new_tokens=9))
    assert isinstance(model.generate("", max_new_tokens=2), str)
    a, b = model.score("the quick", [" brown fox", " lazy dog"])
    assert a < 0 and b < 0 and a != b
    vectors = model.embed([*TEXT, TEXT[0]])
    assert vectors.shape == (4, model.config.d_model) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors[0], vectors[3])
    torch.testing.assert_close(model.embed(TEXT[1:2])[0], vectors[1], atol=1e-5, rtol=1e-5)
    assert vectors.norm(dim=1).tolist() == pytest.approx([1] * 4, abs=1e-5)
    (result,) = model.classify(["the lazy dog"], ["good", "bad"])
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    assert result["label"] == max(result["probabilities"], key=result["probabilities"].get)
    for wrong in ([], [{"role": "clown", "content": "x"}], [{"role": "user"}]):
        with pytest.raises(UserError):
            model.chat(wrong)


def test_logits_of_the_front_door() -> None:
    model = language_model()
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    logits = model.logits(tokens)
    assert logits.shape == (2, 3, model.config.vocab_size) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.model(tokens).logits.detach())
    for bad in (tokens[0], tokens.int(), tokens + 10**6, tokens - 9, torch.zeros(1, 300, dtype=torch.int64)):
        with pytest.raises(UserError):
            model.logits(bad)
