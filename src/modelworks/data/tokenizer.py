"""The tokenizer: byte-level BPE or single characters, trained here or opened from a Hugging Face directory.

Text is never read as control: `<|im_start|>` in what a user typed becomes ordinary tokens. Control tokens are
put in by id (`eos`, `im_start`, `im_end`), which `data.chat` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from modelworks.base import files
from modelworks.base.errors import DamagedError, UserError, nearest

from . import lines

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
UNKNOWN = "<|unk|>"
SMALLEST = 256 + len(SPECIALS)  # every byte and every control token

# The pre-tokenisation splits that llama.cpp knows as "gpt-2" and "qwen2" (its src/llama-vocab.cpp).
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}

# ChatML. An assistant's words are trimmed so that "assistant\n" is tokenised alone, as it is when generating.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% set content = message['content'] | trim %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Tokenizer:
    """Text to ids and back. Make one with `train`, `characters` or `load`."""

    def __init__(self, backend: Backend, config: dict[str, Any] | None = None, template: str | None = None) -> None:
        self._backend = backend
        backend.encode_special_tokens = True  # control strings inside text stay text
        backend.no_padding()
        backend.no_truncation()
        self.config = config or {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIALS[0],
            "pad_token": SPECIALS[0],
            "bos_token": None,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
        }
        self.template = template

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, pattern: str = "qwen2") -> Tokenizer:
        """Learn a byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2) with at most `vocab_size` tokens.

        The same texts in the same order give the same tokenizer. A small corpus may give fewer tokens than asked.
        Raises UserError when `vocab_size` is below 259 or `pattern` is not gpt2 or qwen2.
        """
        if vocab_size < SMALLEST:
            raise UserError(f"vocab_size {vocab_size} is too small: bytes and control tokens alone are {SMALLEST}.")
        if pattern not in PATTERNS:
            raise UserError(f"pattern '{pattern}' is not known{nearest(pattern, list(PATTERNS))}.")
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator((lines.mend(text) for text in texts), trainer=trainer)
        return cls(backend, template=CHAT_TEMPLATE)

    @classmethod
    def characters(cls, text: str | Iterable[str]) -> Tokenizer:
        """One token for every character that occurs in `text`; any other becomes `<|unk|>`."""
        found = set(lines.mend(text)) if isinstance(text, str) else set().union(*(lines.mend(part) for part in text))
        vocabulary = {token: number for number, token in enumerate([*SPECIALS, UNKNOWN, *sorted(found)])}
        backend = Backend(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in [*SPECIALS, UNKNOWN]])
        tokenizer = cls(backend, template=CHAT_TEMPLATE)
        tokenizer.config["unk_token"] = UNKNOWN
        return tokenizer

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Open `tokenizer.json` of a Hugging Face directory (its config and chat template are kept as they are).

        Raises UserError when there is none, DamagedError when it cannot be read.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; point at a folder that modelworks tokenizer made.")
        try:
            backend = Backend.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises a bare Exception
            raise DamagedError(f"{path}: is not a tokenizer ({error!s:.200}); make it again.") from None
        config_path, template_path = path.with_name("tokenizer_config.json"), path.with_name("chat_template.jinja")
        config = files.read_json(config_path) if config_path.is_file() else None
        if config is not None and not isinstance(config, dict):
            raise DamagedError(f"{config_path}: is not a tokenizer's config; make it again.")
        template = template_path.read_text(encoding="utf-8") if template_path.is_file() else None
        if template is None and isinstance((config or {}).get("chat_template"), str):
            template = config["chat_template"]  # type: ignore[index]
        return cls(backend, config, template)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja; `transformers` opens them."""
        files.write_text(Path(folder) / "tokenizer.json", self._json)
        files.write_json(Path(folder) / "tokenizer_config.json", self.config)
        if self.template is not None:
            files.write_text(Path(folder) / "chat_template.jinja", self.template)

    @cached_property
    def _json(self) -> str:
        return self._backend.to_str(pretty=True)

    @property
    def description(self) -> dict[str, Any]:
        """What tokenizer.json says, as plain data."""
        return dict(json.loads(self._json))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what decides the ids; equal digests give equal ids."""
        return files.digest(json.loads(self._json))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`. No control token is ever recognised in it, and none is added, but with `special` those
        that this tokenizer puts around a text (BERT's [CLS] and [SEP], Llama's <|begin_of_text|>)."""
        ids = self._backend.encode(lines.mend(text), add_special_tokens=False).ids
        return [*self.around[0], *ids, *self.around[1]] if special else ids

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The control tokens that belong before and after a text; both empty where the tokenizer was made here."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        whole = self._backend.encode("a", add_special_tokens=True).ids
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []

    def encode_marked(self, text: str, marks: Mapping[str, int]) -> list[int]:
        """Ids of a text (without what stands around it) in which some strings are control tokens: {string: id}.

        Where the tokenizer says that a token takes the space before or after it (RoBERTa's <mask>), it does.
        """
        added = self._backend.get_added_tokens_decoder()
        tokens = {mark: added.get(id) for mark, id in marks.items()}
        parts = re.split("(" + "|".join(map(re.escape, sorted(marks, key=len, reverse=True))) + ")", text)
        ids: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                ids.append(marks[part])
                continue
            before = tokens[parts[number - 1]] if number else None
            after = tokens[parts[number + 1]] if number + 1 < len(parts) else None
            part = part.lstrip() if before is not None and before.rstrip else part
            ids += self.encode(part.rstrip() if after is not None and after.lstrip else part)
        return ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in the text each token of `encode` stands: (first character, one after the last)."""
        return list(self._backend.encode(lines.mend(text), add_special_tokens=False).offsets)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, on all threads."""
        mended = [lines.mend(text) for text in texts]
        if self._characters is not None:
            return [self._looked_up(text).tolist() for text in mended]
        return [e.ids for e in self._backend.encode_batch_fast(mended, add_special_tokens=False)]

    @cached_property
    def _characters(self) -> np.ndarray[Any, Any] | None:
        """The id of each code point where a token is a character and nothing else happens; None for other kinds.

        Looking up is thirty times as fast as the library, which makes a string of every character.
        """
        said = json.loads(self._json)
        single = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
        if said["model"]["type"] != "WordLevel" or said["pre_tokenizer"] != single:
            return None
        if said.get("normalizer") or said.get("post_processor") or not self._backend.encode_special_tokens:
            return None
        vocabulary = {ord(token): number for token, number in said["model"]["vocab"].items() if len(token) == 1}
        table = np.full(max(vocabulary, default=0) + 2, said["model"]["vocab"][said["model"]["unk_token"]], np.int64)
        for code, number in vocabulary.items():
            table[code] = number
        return table

    def _looked_up(self, text: str) -> np.ndarray[Any, Any]:
        """Ids [characters] of a text by the table; code points beyond it take its last place, which is unknown."""
        assert self._characters is not None
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        return self._characters[np.minimum(codes, len(self._characters) - 1)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens give nothing, bytes that are not UTF-8 give U+FFFD."""
        table, size = self._bytes, len(self._bytes)
        text = b"".join([table[i] for i in map(int, ids) if 0 <= i < size]).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._kind == "WordPiece" else text  # each word brings the space before it

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for (perhaps part of a character); b"" for control tokens."""
        return self._bytes[id] if 0 <= id < len(self._bytes) else b""

    @cached_property
    def _kind(self) -> str | None:
        """How tokens become text: ByteLevel, Sequence or Metaspace (SentencePiece), WordPiece (BERT) ..."""
        return (json.loads(self._json).get("decoder") or {}).get("type")

    @cached_property
    def _bytes(self) -> list[bytes]:
        kind = self._kind
        inner = self._backend.decoder.prefix if kind == "WordPiece" else ""  # what marks a piece inside a word
        letters = _letters() if kind == "ByteLevel" else {}
        specials = {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        table = [b""] * self.vocab_size
        for token, number in self._backend.get_vocab(with_added_tokens=True).items():
            if token == UNKNOWN:
                table[number] = "\ufffd".encode()
            elif number in specials:
                continue
            elif all(letter in letters for letter in token):
                table[number] = bytes(letters[letter] for letter in token)
            elif kind == "Sequence" and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                table[number] = bytes([int(token[3:5], 16)])  # SentencePiece's byte fallback
            elif kind == "WordPiece":
                table[number] = (token.removeprefix(inner) if token.startswith(inner) else " " + token).encode()
            else:
                table[number] = (token.replace("\u2581", " ") if kind in ("Sequence", "Metaspace") else token).encode()
        return table

    @property
    def eos(self) -> int:
        """The token that ends (and begins) a document: `eos_token` of the config, else BERT's [SEP], else
        `<|endoftext|>`. Raises UserError where there is none of them."""
        return self._control(self._named("eos_token") or self._named("sep_token") or SPECIALS[0])

    def special(self, role: str) -> int | None:
        """The id of what the config calls `role` (pad_token, bos_token, mask_token, cls_token ...), if anything."""
        named = self._named(role)
        return None if named is None else self._backend.token_to_id(named)

    def _named(self, role: str) -> str | None:
        named = self.config.get(role)
        return named.get("content") if isinstance(named, dict) else named

    @property
    def im_start(self) -> int:
        """The token that opens a chat turn."""
        return self._control("<|im_start|>")

    @property
    def im_end(self) -> int:
        """The token that closes a chat turn."""
        return self._control("<|im_end|>")

    def _control(self, token: Any) -> int:
        number = self._backend.token_to_id(str(token))
        if number is None:
            raise UserError(f"the tokenizer has no control token {token}; use one made by modelworks tokenizer.")
        return number


def _letters() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte, turned round: character -> byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(rest)}
