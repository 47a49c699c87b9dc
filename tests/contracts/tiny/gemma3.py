from modelworks.models._rope import Linear
from modelworks.models.gemma3 import Config

KIND = "decoder"
BASE = Config(
    vocab_size=97, d_model=32, n_layers=7, n_heads=4, n_kv_heads=2, d_head=16, d_ff=40, max_len=64, window=5,
    query_scalar=300,
)  # fmt: skip
CONFIGS = {
    "tied": BASE,
    "stretched-untied": BASE.model_copy(
        update={"rope_scaling": Linear(factor=4.0), "tie_word_embeddings": False, "rope_theta_local": 500.0}
    ),
    "every-second": BASE.model_copy(update={"whole_every": 2, "n_layers": 3, "logit_cap": 2.0}),
    "headless": BASE.model_copy(update={"head": "none", "n_layers": 3, "whole_every": 3}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3, "n_layers": 2, "whole_every": 2}),
}
