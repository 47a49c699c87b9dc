"""What an encoder owes: padding that leaks nothing and is Hugging Face's, documents packed or apart, losses where
labels are and nowhere else, slopes of attention by blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from modelworks.nn import mixing

from .kinds import Case, build, cases, gap, scramble, theirs, twin

CLOSE = 1e-5
CASES = cases("encoder")
FILLERS = [case for case in CASES if case.config.head == "masked_lm"]
AT_TOKENS = [case for case in CASES if case.config.head in ("masked_lm", "tokens")]
DOCUMENTS = torch.tensor([[1] * 4 + [2] * 8 + [3] * 5, [1] * 17, [5] * 1 + [2] * 9 + [0] * 7])
PIECES = [(0, 0, 4), (0, 4, 12), (0, 12, 17), (1, 0, 17), (2, 0, 1), (2, 1, 10)]
PAD = 1
"""RoBERTa's padding, which its own code finds by this id; for the others it is a word like any other."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def words(rows: int, seq: int) -> Tensor:
    return torch.randint(3, 97, (rows, seq), generator=torch.Generator().manual_seed(1))


def kinds_of_words(case: Case, rows: int, seq: int) -> dict[str, Tensor]:
    """Token types, where the family has them."""
    count = getattr(case.config, "n_types", 1)
    if count < 2:
        return {}
    return {"types": torch.randint(count, (rows, seq), generator=torch.Generator().manual_seed(2))}


def at(given: dict[str, Tensor], row: int, start: int, end: int) -> dict[str, Tensor]:
    return {name: tensor[row : row + 1, start:end] for name, tensor in given.items()}


def read(output: Any) -> Tensor:
    """What differs from token to token: logits, or hidden states where there are none or only a text's."""
    return output.logits if output.logits is not None and output.logits.dim() == 3 else output.hidden


def padded(side: str, seq: int = 17) -> Tensor:
    real = torch.ones(3, seq, dtype=torch.long)
    for row, length in enumerate((seq, 4, 9)):
        real[row, length:] = 0
    return real.flip(1) if side == "left" else real


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_padding_leaks_nothing(case: Case, side: str) -> None:
    model, tokens, real = build(case), words(3, 17), padded(side)
    more = kinds_of_words(case, 3, 17)
    other = torch.where(real == 1, tokens, (tokens + 13) % 97)
    flipped = {name: torch.where(real == 1, t, 1 - t.clamp(max=1)) for name, t in more.items()}
    with torch.no_grad():
        one, two = model(tokens, documents=real, **more), model(other, documents=real, **flipped)
        assert torch.equal(read(one)[real == 1], read(two)[real == 1])
        assert torch.isfinite(read(one)).all()
        if one.logits is not None and one.logits.dim() == 2 and side == "right":
            assert torch.equal(one.logits, two.logits)
        for row in range(3):
            kept = real[row] == 1
            alone = model(tokens[row][kept][None], **{name: t[row][kept][None] for name, t in more.items()})
            assert gap(read(one)[row][kept], read(alone)[0]) <= CLOSE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_padding_is_theirs(case: Case, tmp_path: Any) -> None:
    """A batch padded on the right gives what `transformers` makes of it with an attention mask."""
    from modelworks.hub import directory

    model = twin(case)
    model.save_pretrained(tmp_path)
    mine, real, more = directory.load(tmp_path).model, padded("right"), kinds_of_words(case, 3, 17)
    tokens = torch.where(real == 1, words(3, 17), PAD)
    named = {"types": "token_type_ids"}
    with torch.no_grad():
        got = mine(tokens, documents=real, **more)
        want = model(input_ids=tokens, attention_mask=real, **{named[name]: t for name, t in more.items()})
    if want.get("logits") is None:
        assert gap(got.hidden[real == 1], want.last_hidden_state[real == 1]) <= CLOSE
    elif want.logits.dim() == 2:
        assert gap(got.logits, want.logits) <= CLOSE
    else:
        assert gap(got.logits[real == 1], want.logits[real == 1]) <= CLOSE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_packed_documents_are_separate_documents(case: Case) -> None:
    """Rows full of documents, so that nothing is padded; each has its own positions and token types."""
    model, given = build(case), {"tokens": words(3, 17)} | kinds_of_words(case, 3, 17)
    with torch.no_grad():
        packed = read(model(**given, documents=DOCUMENTS))
        for row, start, end in PIECES:
            alone = read(model(**at(given, row, start, end)))[0]
            assert gap(packed[row, start:end], alone) <= CLOSE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_sides_are_seen(case: Case) -> None:
    model, tokens = build(case), words(1, 17)
    changed = tokens.clone()
    changed[:, 8] = tokens[:, 8] % 90 + 4
    with torch.no_grad():
        moved = (read(model(tokens)) - read(model(changed)))[0].abs().amax(-1)
    assert (moved[4:13] > 0).all()


@pytest.mark.parametrize("case", [case for case in CASES if getattr(case.config, "n_types", 1) > 1], ids=str)
def test_token_types_count(case: Case) -> None:
    model, tokens = build(case), words(2, 17)
    zeros = torch.zeros_like(tokens)
    with torch.no_grad():
        assert torch.equal(read(model(tokens)), read(model(tokens, types=zeros)))
        assert gap(read(model(tokens)), read(model(tokens, types=zeros + 1))) > 1e-3


@pytest.mark.parametrize("case", AT_TOKENS, ids=str)
def test_losses_are_cross_entropy_of_the_logits(case: Case) -> None:
    """Values and slopes; -100 is not counted."""
    model, tokens = build(case), words(3, 17)
    width = case.config.vocab_size if case.config.head == "masked_lm" else case.config.n_labels
    labels = torch.where(torch.rand(3, 17, generator=torch.Generator().manual_seed(5)) < 0.3, tokens % width, -100)
    out = model(tokens, labels=labels)
    logits = model(tokens).logits
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert out.logits is None and out.losses.dtype == torch.float32
    assert gap(out.losses.flatten(), want) <= CLOSE
    weights = dict(model.named_parameters())
    got = torch.autograd.grad(out.losses.sum(), weights.values(), allow_unused=True)
    slopes = torch.autograd.grad(want.sum(), weights.values(), allow_unused=True)
    for name, one, other in zip(weights, got, slopes, strict=True):
        assert (one is None) == (other is None), name
        assert one is None or gap(one, other) <= 2e-5 * max(1.0, other.abs().max().item()), name


@pytest.mark.parametrize("case", FILLERS, ids=str)
def test_only_labelled_places_are_predicted(case: Case) -> None:
    """The head's transform meets the labelled rows and no others."""
    model, tokens = build(case), words(3, 17)
    labels = torch.full_like(tokens, -100)
    labels[0, 3], labels[2, 16] = 5, 6
    met: list[int] = []
    model.head.transform.register_forward_hook(lambda module, args, out: met.append(args[0].shape[:-1].numel()))
    losses = model(tokens, labels=labels).losses
    assert met == [2]
    assert losses.count_nonzero() == 2


@pytest.mark.parametrize("case", FILLERS, ids=str)
def test_blocks_of_attention_have_the_slopes_of_the_whole(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 tokens are more than one block of queries; packed and padded rows, against torch's own attention."""
    model, tokens = build(case), words(2, 200)
    documents = torch.ones(2, 200, dtype=torch.long)
    documents[0, 90:] = 2
    documents[1, 170:] = 0
    labels = torch.where(documents == 0, -100, tokens)
    for given in ({}, {"documents": documents}):
        slopes = []
        for longest in (mixing.LONGEST, 0):
            monkeypatch.setattr(mixing, "LONGEST", longest)
            model.zero_grad()
            model(tokens, labels=labels, **given).losses.sum().backward()
            slopes.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
            monkeypatch.undo()
        for name, slope in slopes[0].items():
            assert gap(slope, slopes[1][name]) <= 2e-5 * max(1.0, slope.abs().max().item()), name


@pytest.mark.parametrize("case", FILLERS, ids=str)
def test_long_texts_are_theirs(case: Case) -> None:
    """200 tokens: more than a block of queries, and than a local layer's window."""
    from modelworks.hub import tensors

    model, tokens = twin(case), words(2, 200)
    mine = case.family.build(case.config)
    stored = tensors.gather(mine, case.family, case.config)
    model.load_state_dict(stored, strict=False)
    with torch.no_grad():
        assert gap(mine.eval()(tokens).logits, theirs(model, case, {"tokens": tokens})["logits"]) <= CLOSE


@pytest.mark.parametrize("case", FILLERS, ids=str)
def test_perturb_is_added_to_the_embeddings(case: Case) -> None:
    model, tokens = build(case), words(3, 17)
    seen: list[Tensor] = []
    model.stem.register_forward_hook(lambda module, args, out: seen.append(out))
    plain = model(tokens)
    perturb = torch.full((3, 17, case.config.d_model), 0.25, requires_grad=True)
    out = model(tokens, perturb=perturb, labels=tokens)
    assert gap(seen[1], seen[0] + 0.25) <= CLOSE
    assert gap(out.hidden, plain.hidden) > 1e-4
    out.losses.sum().backward()
    assert perturb.grad is not None and perturb.grad.abs().sum(-1).gt(0).all()


@pytest.mark.parametrize("case", FILLERS, ids=str)
def test_autocast_stays_near_float32(case: Case) -> None:
    model, tokens = build(case), words(3, 17)
    with torch.no_grad():
        exact = model(tokens, labels=tokens).losses
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(tokens, labels=tokens).losses
    assert rounded.dtype == torch.float32
    assert gap(rounded, exact) <= 0.05 * exact.abs().max().item()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dropout_only_while_training(case: Case) -> None:
    model, tokens = case.family.build(case.config.model_copy(update={"dropout": 0.3})), words(3, 17)
    scramble(model)
    model.train()
    assert not torch.equal(read(model(tokens)), read(model(tokens)))
    model.eval()
    assert torch.equal(read(model(tokens)), read(model(tokens)))


@pytest.mark.parametrize("case", [case for case in CASES if case.config.head == "classes"], ids=str)
def test_losses_of_classes(case: Case) -> None:
    model, tokens = build(case), words(3, 17)
    labels = torch.tensor([2, 0, -100])
    want = torch.nn.functional.cross_entropy(model(tokens).logits[:2], labels[:2], reduction="none")
    assert gap(model(tokens, labels=labels).losses, torch.cat((want, torch.zeros(1)))) <= CLOSE
