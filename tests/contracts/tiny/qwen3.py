from modelworks.models.qwen3 import Config

KIND = "decoder"
BASE = Config(
    vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=48, max_len=64, rope_theta=10_000.0
)
CONFIGS = {
    "tied": BASE,
    "untied": BASE.model_copy(update={"tie_word_embeddings": False}),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
