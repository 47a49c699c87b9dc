"""What a passage states: its sentences, and for code what its first line says of arguments, defaults and kind.

The same statements make the questions (`steps/questions.py`) and judge the answers (`grounding.py`), so an
answer counts as supported only when it says what some statement of its passage says, word for word up to
articles, verb endings and a repeated subject:

    passage   function os.path.join(a, *p)        statements   takes a p
              Join two or more components.                     function module os.path
                                                               join two or more components
"""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass

from .retrieve import Passage

_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|-?\d+(?:\.\d+)*|[^\W\d_][\w]*(?:\.\w+)*|_\w+(?:\.\w+)*|[<>=!+*/%&|^~@]+"
)
_CLAUSE = re.compile(r"[,;:()\[\]{}\u2014\uff0c\uff1b\uff1a\u3001\uff08\uff09]+|\s-{1,2}\s")
_SENTENCE = re.compile(
    r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])|(?<=[\u3002\uff01\uff1f\uff1b])|\n\s*\n|\n\s*[-*]\s+"
)
_FILLERS = frozenset("a an the it its this that is are was were be been and of argument arguments also".split())
BASES = "Bases: "
_HEAD = re.compile(rf"(function|method|class|module) ([\w.]+)(\([^\n]*\))?[ ]*(?:\n{BASES}([^\n]*))?(?=\n|$)")
# A clause that starts with one of these limits what stands before it: leaving it out would change the meaning.
_LIMITS = frozenset(
    "if unless except but only when while otherwise not without until provided although 除非 如果 但".split()
)


@functools.lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Verb and plural endings off, so that 'returns' meets 'Return'; names with dots or underscores keep theirs."""
    if not word.isalpha() or not word.isascii() or len(word) < 4:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(s|x|z|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def content(text: str) -> list[str]:
    """Tokens that carry meaning, in order: stemmed words, whole names, numbers, signs, single Chinese characters."""
    tokens = [stem(token.lower()) for token in _TOKEN.findall(text)]
    return [token for token in tokens if token not in _FILLERS]


def sentences(text: str) -> list[str]:
    """Split running text into sentences, English or Chinese; line breaks inside a sentence become spaces."""
    pieces = (re.sub(r"\s+", " ", piece).strip() for piece in _SENTENCE.split(text))
    return [piece for piece in pieces if _TOKEN.search(piece)]


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing that a passage says: `clauses` of content tokens, and the sentence to quote for it ('' for a head)."""

    clauses: tuple[tuple[str, ...], ...]
    text: str = ""

    def says(self, tokens: list[str]) -> bool:
        """True when `tokens` are this statement from its start, up to a clause whose loss does not change it."""
        said: list[str] = []
        for number, clause in enumerate(self.clauses):
            said += clause
            after = self.clauses[number + 1] if number + 1 < len(self.clauses) else ()
            if said == tokens:
                return not after or after[0] not in _LIMITS
        return False


@dataclass(frozen=True, slots=True)
class Head:
    """The first line of a passage about code: kind, dotted name, parameters with their defaults ('' = none)."""

    kind: str
    name: str
    parameters: tuple[tuple[str, str], ...]
    bases: tuple[str, ...]

    @property
    def short(self) -> str:
        """The last part of the name: 'join' of 'os.path.join'."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def parent(self) -> str:
        """What the name stands in: 'os.path' of 'os.path.join'."""
        return self.name.rpartition(".")[0]


@functools.lru_cache(maxsize=50_000)
def head(text: str) -> Head | None:
    """Read a passage's first line (and the line of bases below it); None when it is not about code."""
    match = _HEAD.match(text)
    if not match:
        return None
    kind, name, arguments = match[1], match[2], match[3] or ""
    bases = tuple(re.findall(r"[\w.]*\w", match[4] or ""))
    try:
        node = ast.parse(f"def f{arguments or '()'}: pass").body[0]
    except SyntaxError:
        return Head(kind, name, (), bases)
    assert isinstance(node, ast.FunctionDef)
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [""] * (len(plain) - len(given.defaults)) + [ast.unparse(d) for d in given.defaults]
    pairs = [(a.arg, d) for a, d in zip(plain, defaults, strict=True) if a.arg not in ("self", "cls")]
    pairs += [(given.vararg.arg, "")] if given.vararg else []
    pairs += [(a.arg, ast.unparse(d) if d else "") for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    pairs += [(given.kwarg.arg, "")] if given.kwarg else []
    return Head(kind, name, tuple(pairs), bases)


def body_of(text: str) -> str:
    """A passage without its head."""
    match = _HEAD.match(text)
    return text[match.end() :].lstrip("\n") if match else text


@functools.lru_cache(maxsize=50_000)
def statements(passage: Passage) -> tuple[Statement, ...]:
    """Everything that a passage says, heads first, then its sentences in order."""
    out: list[Statement] = []
    code = head(passage.text)
    body = passage.text
    if code:
        body = body_of(passage.text)
        out.append(_one(f"{code.name}"))
        where = "class" if code.kind == "method" else "module"
        out.append(_one(f"{code.kind} in {where} {code.parent}" if code.parent else code.kind))
        if code.kind in ("function", "method") or code.parameters:
            names = " ".join(name for name, _ in code.parameters)
            out.append(_one(f"takes {names}" if names else "takes no arguments"))
            out += [_one(f"default of {name} is {value}") for name, value in code.parameters if value]
        if code.bases:
            out.append(_one("inherits from " + " ".join(code.bases)))
    for sentence in sentences(body):
        clauses = tuple(tuple(c) for c in map(content, _CLAUSE.split(sentence)) if c)
        if clauses:
            out.append(Statement(clauses, sentence))
    return tuple(out)


def _one(text: str) -> Statement:
    return Statement((tuple(content(text)),))
