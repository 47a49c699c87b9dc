"""Contract of every step of prepare: whatever comes in, the ledger balances, nothing crashes, same in means same out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.base import folders
from modelworks.base.config import Settings
from modelworks.data.corpus import Account, Document
from modelworks.data.prepare import STEPS, chosen

NAMES = [name for name in folders.names(STEPS) if hasattr(folders.find(STEPS, name), "apply")]
JUNK = st.text(alphabet=st.characters(exclude_categories=()), max_size=80)
PIECES = st.sampled_from(
    ["<p>", "# x\n", "a@b.org ", "\x00", "\ud83d", "你好，", "\n\n\n", "=====\n", "10.20.30.40", "```\n"]
)
TEXT = st.lists(st.one_of(JUNK, PIECES, st.just("The words of a sentence. ")), max_size=6).map("".join)
FORMATS = st.sampled_from(["html", "markdown", "rst", "docstring", "text", "pdf", ""])
ITEMS = st.lists(st.tuples(TEXT, FORMATS), max_size=12)


def run(name: str, items: list[tuple[str, str]]) -> tuple[list[tuple[str, str, Any]], dict[str, Any]]:
    ((_, module, config),) = chosen([name], seed=3)
    account = Account(name)
    documents = [Document(f"d{i}", text, {"format": kind} if kind else {}) for i, (text, kind) in enumerate(items)]
    step: Callable[..., Any] = module.apply
    out = list(account.outgoing(step(account.incoming(documents), config, account)))
    account.check()
    assert account.came.documents == len(items)
    return [(d.id, d.text, d.meta) for d in out], account.as_dict()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(items=ITEMS)
def test_the_ledger_balances_whatever_comes(name: str, items: list[tuple[str, str]]) -> None:
    first = run(name, items)
    assert first == run(name, items)
    assert len({id for id, _, _ in first[0]}) == len(first[0])
    for _, text, _ in first[0]:
        text.encode()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_described(name: str) -> None:
    module = folders.find(STEPS, name)
    assert (module.__doc__ or "").startswith(f"{name}: ")
    assert issubclass(module.Config, Settings) and len(module.Config.model_fields) <= 20
    assert all(field.description for key, field in module.Config.model_fields.items() if key != "seed")
