"""A text with images in it, written on from a cache; and what is said when words and vectors do not match."""

from __future__ import annotations

import pytest
import torch

from modelworks.base.errors import UserError

from ..contracts.kinds import build, cases, gap, inputs

CASES = cases("vision_language")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cached_is_uncached(case) -> None:
    model, given = build(case), inputs(case)
    with torch.no_grad():
        whole = model(**given).logits
        cache = model.new_cache(3, 20)
        steps = [model(given["tokens"][:, :14], pixels=given["pixels"], cache=cache).logits]
        steps += [model(given["tokens"][:, t : t + 1], cache=cache).logits for t in range(14, 17)]
    assert gap(torch.cat(steps, 1), whole) <= 1e-5


def test_the_image_is_seen_only_by_what_comes_after_it() -> None:
    model, given = build(CASES[0]), inputs(CASES[0])
    one = model(**given).logits
    given["pixels"] = given["pixels"] + 1.0
    two = model(**given).logits
    for row in range(3):  # the image begins at 1 + row
        assert torch.equal(one[row, : 1 + row], two[row, : 1 + row])
        assert (one[row, 1 + row :] - two[row, 1 + row :]).abs().amax(-1).gt(0).all()


def test_image_tokens_and_vectors_must_match() -> None:
    model, given = build(CASES[0]), inputs(CASES[0])
    given["tokens"][0, 5] = 1
    with pytest.raises(UserError, match="26 image tokens and the images make 27 vectors"):
        model(**given)
    with pytest.raises(UserError, match="resize the image"):
        model(given["tokens"], pixels=torch.zeros(3, 3, 16, 16))
