from modelworks.models.mixtral import Config

KIND = "decoder"
BASE = Config(
    vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=24, max_len=64, n_experts=4
)
CONFIGS = {
    "whole": BASE,
    "window-tied": BASE.model_copy(update={"window": 5, "tie_word_embeddings": True, "rope_theta": 1e4, "n_active": 3}),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
