"""What the server may be told: where it listens, who may ask, and how much of everything there may be."""

from __future__ import annotations

import ipaddress
import os

from pydantic import Field, SecretStr

from modelworks.base.config import Settings
from modelworks.base.errors import UserError

KEY = "MODELWORKS_API_KEY"


def keys_from_environment() -> list[SecretStr]:
    """The keys in MODELWORKS_API_KEY, separated by commas."""
    return [SecretStr(key.strip()) for key in os.environ.get(KEY, "").split(",") if key.strip()]


class ServeSettings(Settings):
    """Settings of `modelworks serve`."""

    host: str = Field("127.0.0.1", min_length=1, max_length=255)
    """Address to listen on; anything but this machine needs a key."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    api_keys: list[SecretStr] = Field(default_factory=keys_from_environment, max_length=1000)
    """Keys that may ask (sent as `Authorization: Bearer KEY`); by default those in MODELWORKS_API_KEY."""
    allowed_hosts: list[str] = Field(default_factory=list, max_length=1000)
    """Further names in the Host header that are answered; with a public address and none given, all (a key guards)."""
    max_rows: int = Field(16, ge=1, le=1024)
    """Continuations of a model that are advanced together."""
    max_queue: int = Field(64, ge=1, le=100_000)
    """Continuations that may wait or run; whoever comes then is told to come back (429)."""
    max_tokens: int = Field(4096, ge=1, le=1_000_000)
    """The most tokens a request may ask for."""
    default_tokens: int = Field(512, ge=1, le=1_000_000)
    """Tokens of a chat answer when the request names no number."""
    max_body: int = Field(1_000_000, ge=1000, le=100_000_000)
    """Bytes of a request's body."""
    request_seconds: float = Field(300.0, gt=0, le=86_400)
    """After so long a request is ended."""
    stuck_seconds: float = Field(30.0, gt=0, le=3600)
    """With work waiting and no progress for so long, the server says that it is not ready."""
    drain_seconds: float = Field(30.0, ge=0, le=3600)
    """After the first signal to stop, running answers may take so long."""

    @property
    def local(self) -> bool:
        """True where only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Raises UserError where the world could connect and nobody has to show a key."""
        if not self.local and not self.api_keys:
            raise UserError(
                f"{self.host}: others could connect and no key is set; put one into {KEY} or listen on 127.0.0.1."
            )
