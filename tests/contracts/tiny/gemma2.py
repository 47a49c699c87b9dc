from modelworks.models.gemma2 import Config

KIND = "decoder"
BASE = Config(
    vocab_size=97, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_head=16, d_ff=48, max_len=64, window=5,
    query_scalar=9, attention_cap=2.0, logit_cap=1.5,
)  # fmt: skip
CONFIGS = {
    "tied": BASE,
    "untied-uncapped": BASE.model_copy(update={"tie_word_embeddings": False, "attention_cap": None, "logit_cap": None}),
    "every-third": BASE.model_copy(update={"whole_every": 3, "n_kv_heads": 1}),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
