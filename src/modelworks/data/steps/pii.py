"""pii: mask e-mail addresses, telephone, identity and card numbers and public IP addresses, and count them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from modelworks.base.config import Settings

from ..corpus import Account, Document

_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9_.+-]{1,64}@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![\w-])")
# Example domains of RFC 2606 and names that cannot be anybody's.
_EXAMPLES = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net))?|test|invalid|localhost|local)$", re.I)
_IDENTITY = re.compile(
    r"(?<!\d)[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dA-Za-z])"
)
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_CARD = re.compile(
    r"(?<![\d-])(?:3[47]\d{2}|4\d{3}|5[1-5]\d{2}|62\d{2})(?:[ -]?\d{4}){2}[ -]?\d{3,4}(?:\d{0,3})(?![\d-])"
)
_PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"  # Chinese mobile
    r"|\(?0\d{2,3}\)?[ -]\d{7,8}"  # Chinese landline
    r"|(?:\+1[ .-]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])[2-9]\d{2}[.-]\d{4}"  # North America
    r"|\+[1-9]\d{0,2}(?:[ -]?\(?\d{1,4}\)?){2,5}\d{2,4}"  # international
    r")(?![\w.-]?\d)"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_UNICAST = ipaddress.ip_network("2000::/3")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


class Config(Settings):
    email: bool = True
    """Mask e-mail addresses, but those of example domains."""
    phone: bool = True
    """Mask telephone numbers in Chinese, North American and international forms."""
    identity: bool = True
    """Mask Chinese identity numbers (with a right check digit), US social security numbers and bank cards (Luhn)."""
    address: bool = True
    """Mask IP addresses that are public; private, local and documentation ranges stay."""


def apply(documents: Iterator[Document], config: Config, ledger: Account) -> Iterator[Document]:
    """Yield every document with personal data replaced by `[email]`, `[phone]`, `[id]`, `[card]`, `[ip]`."""
    for document in documents:
        text, found = mask(document.text, config)
        for what, count in found.items():
            ledger.note(f"masked: {what}", count)
        if found:
            before = document.bytes
            document.text = text
            ledger.change(before, document)
        yield document


def mask(text: str, config: Config) -> tuple[str, dict[str, int]]:
    """The text with personal data masked, and how many of each kind were found."""
    found: dict[str, int] = {}

    def replace(pattern: re.Pattern[str], what: str, sure: object = None) -> None:
        nonlocal text

        def by(match: re.Match[str]) -> str:
            if callable(sure) and not sure(match):
                return match[0]
            found[what] = found.get(what, 0) + 1
            return f"[{what}]"

        text = pattern.sub(by, text)

    if config.email and "@" in text:
        replace(_EMAIL, "email", lambda m: not _EXAMPLES.search(m[1]))
    digits = sum(map(text.count, "0123456789"))
    if config.identity and digits >= 9:
        replace(_IDENTITY, "id", lambda m: _identity(m[0]))
        replace(_SSN, "id")
        replace(_CARD, "card", lambda m: _luhn(m[0]))
    if config.address and (digits >= 4 or "::" in text):
        replace(_IPV4, "ip", lambda m: _public(m[0]))
        replace(_IPV6, "ip", lambda m: _public(m[0]))
    if config.phone and digits >= 7:
        replace(_PHONE, "phone", lambda m: 8 <= sum(c.isdigit() for c in m[0]) <= 15)
    return text, found


def _identity(number: str) -> bool:
    """GB 11643: the last digit checks the seventeen before."""
    return "10X98765432"[sum(int(d) * w for d, w in zip(number, _WEIGHTS)) % 11] == number[-1].upper()


def _luhn(number: str) -> bool:
    digits = [int(c) for c in number if c.isdigit()]
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [d * 2 - 9 * (d > 4) if place % 2 else d for place, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _public(text: str) -> bool:
    """True for an address that may be somebody's; '2.7.2.2' is taken for a version."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return address.is_global and address in _UNICAST
    return address.is_global and sum(len(part) > 1 for part in text.split(".")) >= 2
