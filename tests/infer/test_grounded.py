"""The assistant: one answer a question, whatever the model says; what is shown stands in what is cited."""

from __future__ import annotations

from typing import Any

import pytest

from modelworks.base.errors import UserError
from modelworks.data import grounding, retrieve
from modelworks.data.grounding import UNKNOWN
from modelworks.data.retrieve import Passage, Passages
from modelworks.data.tokenizer import Tokenizer
from modelworks.hub import presets
from modelworks.infer.grounded import Assistant, as_text

PASSAGES = [
    Passage(
        "join#0", "os.path.join", "function os.path.join(a, *p)\nJoin two or more pathname components.", "posixpath.py"
    ),
    Passage("rm#0", "shutil.rmtree", "function shutil.rmtree(path)\nRecursively delete a directory tree."),
]


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    folder = tmp_path_factory.mktemp("assistant")
    retrieve.write(folder / "passages.sqlite", PASSAGES)
    tokenizer = Tokenizer.train((p.text for p in PASSAGES), 300)
    built = presets.build("qwen3-nano", vocab_size=tokenizer.vocab_size)
    return Assistant(
        built.model, tokenizer, built.family, built.config, {}, passages=Passages(folder / "passages.sqlite")
    )


def test_an_untrained_model_never_says_anything_unsupported(assistant: Assistant) -> None:
    for answer in assistant.answer_many(["What does os.path.join do?", "delete a tree", "zzz"]):
        assert answer.kind in ("declined", "quoted", "own")
        for passage in answer.citations:
            assert grounding.supports(passage, answer.text) or grounding.is_quote(passage, answer.text)


def test_what_the_model_writes_is_checked(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "right": "[1] It joins two or more pathname components.",
        "wrong": "[1] It joins two strings.",
        "none": "Yes!",
    }

    def answered(which: str) -> Any:
        monkeypatch.setattr(assistant, "write", lambda questions, found: [said[which]] * len(questions))
        return assistant.answer([{"role": "user", "content": "What does os.path.join do?"}])

    right, wrong, none = (answered(which) for which in said)
    assert (right.kind, right.citations) == ("own", (PASSAGES[0],)) and as_text(right).endswith(
        "[1] os.path.join (posixpath.py)"
    )
    assert (wrong.kind, wrong.text) == ("quoted", "Join two or more pathname components.")
    assert (none.kind, none.text, none.citations) == ("declined", UNKNOWN, ())
    assert "".join(assistant.chat([{"role": "user", "content": "What does os.path.join do?"}], stream=True)) == UNKNOWN


def test_there_must_be_a_question(assistant: Assistant) -> None:
    for nothing in ("  ", [{"role": "assistant", "content": "x"}], []):
        with pytest.raises(UserError, match="no question"):
            assistant.answer(nothing)
