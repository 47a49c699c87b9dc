"""The real assistant behind the real server: its checked answer, its citations and its grounding reach the client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
openai = pytest.importorskip("openai", reason="needs the extra `dev`")

from modelworks.data import retrieve  # noqa: E402
from modelworks.data.retrieve import Passage, Passages  # noqa: E402
from modelworks.infer.grounded import Assistant  # noqa: E402

from ..infer.tiny import language_model  # noqa: E402
from .running import serving  # noqa: E402

JOIN = Passage("join#0", "os.path.join", "function os.path.join(a, *p)\nJoin two or more pathname components.", "os.py")


@pytest.fixture
def desk(tmp_path: Path) -> Assistant:
    retrieve.write(tmp_path / "passages.sqlite", [JOIN])
    model = language_model()
    made = (model.model, model.tokenizer, model.family, model.config, model.facts)
    return Assistant(*made, passages=Passages(tmp_path / "passages.sqlite"), about={"title": "Desk"})


@pytest.mark.parametrize(
    ("raw", "shown", "kind"),
    [
        ("[1] It joins two or more pathname components.", "It joins two or more pathname components.", "own"),
        ("[1] It is magic.", "Join two or more pathname components.", "quoted"),
        ("It is magic.", "I don't know.", "declined"),
    ],
)
def test_only_what_was_checked_is_served(
    desk: Assistant, monkeypatch: pytest.MonkeyPatch, raw: str, shown: str, kind: str
) -> None:
    monkeypatch.setattr(desk, "write", lambda questions, found: [raw] * len(questions))
    asked: dict[str, Any] = {"model": "desk", "messages": [{"role": "user", "content": "What does os.path.join do?"}]}
    with serving({"desk": desk}) as (url, _, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60)
        message = client.chat.completions.create(**asked).choices[0].message
        chunks = [c.choices[0].delta for c in client.chat.completions.create(**asked, stream=True) if c.choices]
    assert (message.content, message.grounding) == (shown, kind)
    assert [c["id"] for c in message.citations] == ([] if kind == "declined" else ["join#0"])
    assert "".join(delta.content or "" for delta in chunks) == shown
    assert [delta.grounding for delta in chunks if hasattr(delta, "grounding")] == [kind]
