from modelworks.models.gpt3 import Config

KIND = "decoder"
BASE = Config(vocab_size=97, d_model=32, n_layers=3, n_heads=4, d_ff=48, max_len=64, band=5)
CONFIGS = {
    "tied": BASE,
    "untied": BASE.model_copy(update={"tie_word_embeddings": False}),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
