from modelworks.models.modernbert import Config

KIND = "encoder"
BASE = Config(vocab_size=97, d_model=32, n_layers=4, n_heads=4, d_ff=48, max_len=256, window=8)
CONFIGS = {
    "masked_lm": BASE,
    "untied": BASE.model_copy(update={"tie_word_embeddings": False, "global_every": 2, "window": 5}),
    "headless": BASE.model_copy(update={"head": "none", "n_layers": 5, "global_theta": 5_000.0}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3, "head_activation": "silu"}),
    "mean": BASE.model_copy(update={"head": "classes", "n_labels": 3, "pooling": "mean", "activation": "silu"}),
    "tokens": BASE.model_copy(update={"head": "tokens", "n_labels": 5}),
}
