"""A tokenizer in a GGUF file: every token, its kind, the merges, and which split llama.cpp makes before them."""

from __future__ import annotations

import contextlib
from typing import Any

from ..base.errors import UserError
from ..data.tokenizer import PATTERNS, Tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of token, as llama.cpp numbers them."""

LLAMA3 = PATTERNS["qwen2"].replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
SPLITS = {PATTERNS["gpt2"]: "gpt-2", PATTERNS["qwen2"]: "qwen2", LLAMA3: "llama-bpe"}
"""The expression that splits a text, and llama.cpp's name for it (src/llama-vocab.cpp)."""


def fields(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The `tokenizer.` keys of a GGUF file; ids that the model has beyond the tokenizer's are marked unused.

    No token is put before a text: our engine puts none. Raises UserError for a tokenizer that llama.cpp would
    read differently.
    """
    about = tokenizer.description
    model = about["model"]
    split = _split(about)
    plain = (about.get("normalizer") or {}).get("type") in (None, "NFC")  # of NFC text, as nearly all is
    if model.get("type") != "BPE" or split is None or model.get("byte_fallback") or not plain:
        raise UserError(
            "GGUF export carries byte-level BPE tokenizers that split text as gpt2, qwen2 or Llama 3 do; train one "
            "with modelworks tokenizer --kind bpe."
        )
    if bool(model.get("ignore_merges")) != (split == "llama-bpe"):
        raise UserError("GGUF export does not carry this tokenizer: llama.cpp would apply its merges otherwise.")
    words = [f"[PAD{number}]" for number in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for word, number in model["vocab"].items():
        words[number], kinds[number] = word, NORMAL
    for token in about.get("added_tokens") or ():
        words[token["id"]], kinds[token["id"]] = token["content"], CONTROL if token["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    out: dict[str, Any] = {
        "ggml.model": "gpt2",  # llama.cpp's word for byte-level BPE
        "ggml.pre": split,
        "ggml.tokens": words,
        "ggml.token_type": kinds,
        "ggml.merges": merges,
        "ggml.bos_token_id": tokenizer.eos,  # a document begins with what ends the one before it
        "ggml.eos_token_id": tokenizer.eos,
        "ggml.padding_token_id": tokenizer.eos,
        "ggml.add_bos_token": False,
        "ggml.add_eos_token": False,
    }
    with contextlib.suppress(UserError):
        out["ggml.eot_token_id"] = tokenizer.im_end
    if tokenizer.template:
        out["chat_template"] = tokenizer.template
    return out


def _split(about: dict[str, Any]) -> str | None:
    """llama.cpp's name of the split that tokenizer.json makes; None where it has none."""
    parts = about.get("pre_tokenizer") or {}
    parts = parts.get("pretokenizers", [parts])
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    if len(parts) == 1:
        return "gpt-2" if parts[0].get("use_regex", True) else None
    if len(parts) != 2 or parts[1].get("use_regex", True) or parts[0].get("behavior") != "Isolated":
        return None
    return SPLITS.get((parts[0].get("pattern") or {}).get("Regex"))
