"""Published shapes that the tests plan for."""

from __future__ import annotations

from modelworks.nn.arithmetic import Shape


def gpt(d_model: int, n_layers: int, n_heads: int, vocab_size: int = 50257, d_head: int | None = None) -> Shape:
    """GPT-2 and GPT-3: four times the width inside, biases and two norms a block, learned positions."""
    return Shape(
        vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads,
        d_head=d_head or d_model // n_heads, d_ff=4 * d_model, feedforward_matrices=2, tied=True,
        learned_positions=2048, vectors_per_layer=13 * d_model, other_vectors=2 * d_model,
    )  # fmt: skip


def llama(d_model: int, n_layers: int, n_heads: int, d_ff: int, n_kv_heads: int = 8) -> Shape:
    """Llama 3."""
    return Shape(
        vocab_size=128_256, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
        d_head=d_model // n_heads, d_ff=d_ff, feedforward_matrices=3, tied=False, vectors_per_layer=2 * d_model,
        other_vectors=d_model,
    )  # fmt: skip


GPT3 = gpt(12288, 96, 96)
LLAMA_8B = llama(4096, 32, 32, 14336)
LLAMA_70B = llama(8192, 80, 64, 28672)
LLAMA_405B = llama(16384, 126, 128, 53248)
