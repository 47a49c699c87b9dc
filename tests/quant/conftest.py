"""The trained model, made once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from modelworks.nn.transformer import Transformer

from . import tiny


@pytest.fixture(scope="session")
def learned() -> Transformer:
    """Not to be changed: quantise a copy."""
    return tiny.trained()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
