from modelworks.models.mistral import Config

KIND = "decoder"
BASE = Config(vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=16, d_ff=48, max_len=64, window=5)
CONFIGS = {
    "window": BASE,
    "whole-tied": BASE.model_copy(update={"window": None, "tie_word_embeddings": True, "rope_theta": 1e6}),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
