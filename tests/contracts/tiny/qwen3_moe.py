from modelworks.models._rope import Yarn
from modelworks.models.qwen3_moe import Config

KIND = "decoder"
BASE = Config(
    vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=16, d_ff=16, d_dense=40, max_len=64,
    n_experts=4, n_active=2, rope_theta=1e4,
)  # fmt: skip
CONFIGS = {
    "untied": BASE,
    "partly-dense-tied-yarn": BASE.model_copy(
        update={
            "n_layers": 3, "dense_layers": (1,), "tie_word_embeddings": True, "renormalised": False,
            "rope_scaling": Yarn(factor=4.0, original_max_len=16),
        }
    ),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}  # fmt: skip
