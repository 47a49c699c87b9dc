from modelworks.models._rope import Yarn
from modelworks.models.qwen2 import Config

KIND = "decoder"
BASE = Config(
    vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=48, max_len=64, rope_theta=10_000.0
)
CONFIGS = {
    "untied": BASE,
    "tied-yarn": BASE.model_copy(
        update={"tie_word_embeddings": True, "rope_scaling": Yarn(factor=4.0, original_max_len=16)}
    ),
    "window-above": BASE.model_copy(update={"n_layers": 3, "window": 5, "full_layers": 1}),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
