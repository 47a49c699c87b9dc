from modelworks.models.openai_gpt import Config

KIND = "decoder"
BASE = Config(vocab_size=97, d_model=32, n_layers=2, n_heads=4, max_len=64, dropout=0.0)
CONFIGS = {
    "tied": BASE,
    "untied": BASE.model_copy(update={"tie_word_embeddings": False}),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
