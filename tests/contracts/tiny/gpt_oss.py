from modelworks.models._rope import Yarn
from modelworks.models.gpt_oss import Config

KIND = "decoder"
BASE = Config(
    vocab_size=97, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_head=16, d_ff=24, max_len=64, n_experts=4,
    n_active=2, window=5, gate_limit=0.5, rope_scaling=Yarn(factor=4.0, original_max_len=16, truncate=False),
)  # fmt: skip
CONFIGS = {
    "untied": BASE,
    "tied-unstretched": BASE.model_copy(
        update={"tie_word_embeddings": True, "rope_scaling": None, "gate_limit": 7.0, "whole_every": 3}
    ),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
