from modelworks.models.distilbert import Config

KIND = "encoder"
BASE = Config(vocab_size=97, d_model=32, n_layers=2, n_heads=4, d_ff=48, max_len=256, dropout=0.0)
CONFIGS = {
    "masked_lm": BASE,
    "untied": BASE.model_copy(update={"tie_word_embeddings": False, "activation": "relu"}),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
    "tokens": BASE.model_copy(update={"head": "tokens", "n_labels": 5}),
}
