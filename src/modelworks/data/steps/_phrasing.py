"""How questions are put: many phrasings for each kind, the last ones held out; and English verb endings."""

from __future__ import annotations

import re

# {s} is the dotted name, {n} its last part, {p} what it stands in, {a} an argument, {k} the kind of thing,
# {v} a summary that starts with a verb in the third person, {q} a phrase of the text, {t} a title.
PHRASES: dict[str, list[str]] = {
    "purpose": [
        "What does {s} do?",
        "What is {s} for?",
        "Explain {s}.",
        "Could you explain {s}?",
        "What does {n} in {p} do?",
        "Tell me what {s} does.",
        "Say what {s} is for.",
        "{s}: what does it do?",
        "Describe the {k} {s}.",
        "What happens when I call {s}?",
        "I need to know what {s} does.",
        "I do not understand {s}, what does it do?",
        "Help, what is {s}?",
        "What is the job of {s}?",
        "What is the purpose of {s}?",
        "What is {s} used for?",
        "What's {s} good for?",
        "Is there a point in using {s}?",
        "Why would I use {s}?",
        "what does {s}() do",
        # held out
        "Could you tell me the purpose of {s}?",
        "Please say what {s} is used for.",
        "Help me understand {s}.",
        "What's the point of {s}?",
    ],
    "arguments": [
        "Which arguments does {s} take?",
        "What arguments does {s} take?",
        "What arguments does {s} accept?",
        "What are the parameters of {s}?",
        "Which parameters does {n} in {p} have?",
        "Name the arguments of {s}.",
        "How do I call {s}?",
        "List the arguments of {s}.",
        "What do I pass to {s}?",
        "What can I give to {s}?",
        "Which inputs does {s} take?",
        "What are the inputs of {s}?",
        "What does {s} want to be given?",
        "Tell me the parameters that {s} has.",
        # held out
        "Name the parameters that {s} accepts.",
        "What can be given to {s} as arguments?",
        "Which inputs does {s} want?",
    ],
    "default": [
        "What is the default of {a} in {s}?",
        "What is the default value of {a} in {s}?",
        "Which default does {a} of {s} have?",
        "{s}: default of {a}?",
        "What value does {a} take in {s} by default?",
        "When calling {s}, which value does {a} have by default?",
        "If {a} is not given to {s}, what is used?",
        "Which value is used for {a} when I leave it out in {s}?",
        "I leave out {a} when I call {s}: what is its value?",
        "Tell me what {a} is in {s} by default.",
        # held out
        "If I leave out {a} in {s}, which value is used by default?",
        "Tell me the default for {a} when calling {s}.",
    ],
    "kind": [
        "What kind of thing is {s}?",
        "Where does {s} belong?",
        "Where does {s} live?",
        "Is {s} a function, a method or a class?",
        "What sort of object is {s}?",
        "Say what kind of thing {s} is.",
        "{s} is a function, or what?",
        # held out
        "Say what sort of object {s} is and where it lives.",
        "{s} is what kind of object?",
    ],
    "bases": [
        "What does {s} inherit from?",
        "Which class is the base of {s}?",
        "What are the bases of {s}?",
        "From what does {s} inherit?",
        "Which class does {s} derive from?",
        "What is {s} derived from?",
        "Name the class that {s} comes from.",
        # held out
        "From which class is {s} derived?",
    ],
    "reverse": [
        "Which {k} in {p} {v}?",
        "Which {k} of {p} {v}?",
        "What in {p} {v}?",
        "Find the {k} in {p} that {v}.",
        "What is the name of the {k} of {p} which {v}?",
        "How is the {k} called from {p} that {v}?",
        "Name me the {k} in {p} that {v}.",
        "I need the {k} in {p} that {v}.",
        # held out
        "Find me the {k} from {p} which {v}.",
        "What is the {k} in {p} called that {v}?",
    ],
    "quote": [
        "What does the text say about {q}?",
        "What is said about {q}?",
        "Tell me about {q}.",
        "Tell me more about {q}.",
        "What do the documents say about {q}?",
        "What can you tell me about {q} in {t}?",
        "I want to know what is written about {q}.",
        "Where is {q} explained, and how?",
        # held out
        "I would like to know more on {q}.",
        "What is written on {q}?",
    ],
    "quote_zh": [
        "文中怎么说{q}？",
        "关于{q}，文中说了什么？",
        "请介绍{q}。",
        "请解释一下{q}。",
        "资料里有没有提到{q}？",
        "告诉我{q}的内容。",
        "我不明白{q}，请说明。",
        "{q}是什么意思？",
        # held out
        "我想了解{q}。",
        "{q}是怎么回事？",
    ],
}
HELD_OUT = {"purpose": 4, "arguments": 3, "default": 2, "kind": 2, "bases": 1, "reverse": 2, "quote": 2, "quote_zh": 2}

_VERBS = frozenset(
    (
        "return set get create add read test parse remove delete send close write run format open process find handle "
        "make convert encode log print decode clear construct wait configure produce check start generate bind query "
        "register stop put insert ask extract retrieve emit change call copy guess execute receive display connect "
        "reset compute invoke mark flush override use determine adjust split push compare move turn delegate instruct "
        "expand resolve try list release load store report destroy unbind install pop wrap escape compile acquire "
        "place schedule unmap define feed take request update decide raise yield perform append show rename wake "
        "indicate iterate dump skip replace modify remember toggle compress search match join cancel attach detach "
        "resize select save restore apply collect count draw fill fetch give enable disable enter exit import "
        "initialize iterate lock unlock map merge normalize notify pack quote raise reload render resume save scroll "
        "shut sort suspend switch unpack validate verify walk"
    ).split()
)


def train_phrases(kind: str) -> list[str]:
    """Phrasings that training sees."""
    return PHRASES[kind][: -HELD_OUT[kind]]


def held_out_phrases(kind: str) -> list[str]:
    """Phrasings that no training question uses."""
    return PHRASES[kind][-HELD_OUT[kind] :]


def third_person(verb: str) -> str:
    """'return' -> 'returns', 'push' -> 'pushes', 'copy' -> 'copies'."""
    if re.search(r"(s|x|z|ch|sh|o)$", verb):
        return verb + "es"
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + "s"


def as_predicate(sentence: str) -> str:
    """'Return True if x.' -> 'returns True if x'; '' where the sentence does not start with a verb we know."""
    first, _, rest = sentence.partition(" ")
    verb = first.lower()
    base = next((b for b in (verb, verb.removesuffix("s"), verb.removesuffix("es")) if b in _VERBS), None)
    if base is None or not first[:1].isupper() or not rest:
        return ""
    return f"{third_person(base)} {rest.rstrip('.').strip()}"
