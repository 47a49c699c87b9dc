"""extract, normalise, quality, pii: what goes, what stays, with the ledger right."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.data.corpus import Account, Document
from modelworks.data.steps import extract, normalise, pii, quality

ARTICLE = "The committee met on Tuesday to discuss the budget, and agreed that the plan should go ahead. " * 6


def run(module, text: str, config=None, **meta: object) -> tuple[str | None, Account]:
    account = Account(module.__name__)
    documents = [Document("d", text, dict(meta))]
    out = list(account.outgoing(module.apply(account.incoming(documents), config or module.Config(), account)))
    account.check()
    return (out[0].text if out else None), account


def test_extract_takes_the_main_text_of_a_page() -> None:
    page = f"""<html><head><title>News</title><style>p {{}}</style><script>alert("x")</script></head><body>
    <nav><ul><li><a href="/">Home</a></li><li><a href="/login">Log in</a></li></ul></nav>
    <article><h1>Budget agreed</h1><p>{ARTICLE}</p><p>{ARTICLE}</p></article><footer>Copyright, cookies</footer></body>"""
    text, account = run(extract, page, format="html")
    assert text is not None and "Budget agreed" in text and text.count("The committee met") == 12
    assert not any(word in text for word in ("Log in", "alert", "cookies", "<p>"))
    whole, _ = run(extract, page, extract.Config(main_content=False), format="html")
    assert whole is not None and "Log in" in whole
    text, account = run(extract, "<html><script>x</script><body></body>", format="html")
    assert text is None and account.left["page without text"].documents == 1
    for junk in ("<" * 5000, "<a>" * 3000, "\0<p>\ud800words", "<p>" + "\udfff" * 9):
        run(extract, junk, format="html")


def test_extract_cleans_markdown_and_rst() -> None:
    text, _ = run(
        extract,
        "---\ntitle: x\n---\n# Head #\n\nSome **bold** and *it*, a [link](http://x.y/(z)) ![pic](p.png)\n<!-- no -->\n"
        "```python\na = b['c'](d)  # **kept**\n```\n\n| a | b |\n|---|---|\n| 1 | 2_3_4 |\n",
        format="markdown",
    )
    assert text is not None
    assert "Head\n\nSome bold and it, a link pic" in text and "a = b['c'](d)  # **kept**" in text
    assert "| 1 | 2_3_4 |" in text and "---" not in text and "no -->" not in text and "```" not in text
    rst = ".. _top:\n\nHead\n====\n\nUse :func:`os.path.join` or :class:`the class <x.Y>` with ``code``.\n\n.. note:: hi\n|====|===|\n+----+---+\n"
    assert (run(extract, rst, format="rst")[0] or "").split() == (
        "Head Use os.path.join or the class with code.".split()
    )
    assert run(extract, "Like :mod:`json`.", format="docstring")[0] == "Like json."
    assert run(extract, "Stays # as *it* is", format="text")[0] == "Stays # as *it* is"


def test_normalise() -> None:
    text, account = run(normalise, "caf\u0065\u0301 \u200b\u00adx\r\ny\x00\x1b[31m  \r\rz\u2028w \n\n\n\n\nend\x0c")
    assert text == "café x\ny\n\nz\nw\n\nend"
    assert run(normalise, "schÃ¶n, Ã©tÃ© â€“ naÃ¯ve")[0] == "schön, été – naïve"
    assert run(normalise, "全角ＡＢＣ，：“引号”。\u3000\u3000段落 ①")[0] == "全角ＡＢＣ，：“引号”。\u3000\u3000段落 ①"
    assert run(normalise, "👩\u200d👩\u200d👧 fine")[0] == "👩\u200d👩\u200d👧 fine"
    text, account = run(normalise, "\x00\x01")
    assert text is None and account.left["empty"].bytes == 0


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=()), max_size=60))
def test_normalise_any_text_once_is_enough(text: str) -> None:
    once, _ = run(normalise, text)
    if once is None:
        return
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)
    assert normalise.normal(once) == once


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Return True or False.", ""),
        ("os.path.join(a, *p)\n\nJoin two or more pathname components.", ""),
        ("味道不错，推荐。", ""),
        ("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", ""),
        ("def f(x):\n    return [i for i in x if i % 2]\n" * 3, ""),
        (ARTICLE, ""),
        ("ok", "too short"),
        ("好", "too short"),
        ("=== *** --- ### !!! ??? @@@ +++ word and words", "mostly symbols"),
        ("QUJD" * 200 + " some words around it", "encoded data or minified code"),
        ("broken \ufffd\ufffd\ufffd text with holes in it", "broken characters"),
        ("a" * 80 + " " + "b" * 30, "one character over and over"),
        ("\n".join(["Home | Log in | Cookies"] * 12), "repeated lines"),
    ],
)
def test_quality(text: str, reason: str) -> None:
    out, account = run(quality, text)
    assert (list(account.left) or [""]) == [reason]
    assert (out is None) == bool(reason)


def card(prefix: str, length: int) -> str:
    for last in "0123456789":
        number = prefix.ljust(length - 1, "0") + last
        digits = [int(c) for c in number][::-1]
        if (sum(digits[0::2]) + sum(sum(divmod(2 * d, 10)) for d in digits[1::2])) % 10 == 0:
            return number
    raise AssertionError


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+x@mail.somewhere.org now", "write to [email] now"),
        ("邮箱：zhang_san@qq.com，谢谢", "邮箱：[email]，谢谢"),
        ("someone@example.com and root@localhost stay", None),
        ("call 13812345678 or +86 138 1234 5678 or 010-62345678", "call [phone] or [phone] or [phone]"),
        ("call (555) 234-5678, 555-234-5678, +44 20 7946 0958.", "call [phone], [phone], [phone]."),
        ("身份证11010519491231002X。", "身份证[id]。"),
        ("身份证110105194912310021。", None),
        ("SSN 123-45-6789", "SSN [id]"),
        (f"card {card('4', 16)} ok", "card [card] ok"),
        ("from 203.45.67.89 and 2a00:1450:4001:81b::200e", "from [ip] and [ip]"),
        ("127.0.0.1 192.168.0.1 10.0.0.1 version 2.7.2.2 ::1 fe80::1 a::b x[::2]", None),
        ("+3.140000; 3.14159265358979 1234567890123 20240101 12:30:45 2024-11-24 0xFFFF", None),
        ("id 4000000000000003 has no right check digit", None),
    ],
)
def test_pii(text: str, masked: str | None) -> None:
    out, account = run(pii, text)
    assert out == (text if masked is None else masked)
    assert bool(account.notes) == (masked is not None)
    assert pii.mask(out or "", pii.Config())[1] == {}
