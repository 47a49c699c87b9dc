from modelworks.models.gpt_neox import Config

KIND = "decoder"
BASE = Config(vocab_size=97, d_model=64, n_layers=2, n_heads=4, d_ff=48, max_len=64)
CONFIGS = {
    "untied": BASE,
    "serial-tied": BASE.model_copy(update={"parallel": False, "tie_word_embeddings": True, "rotary_share": 1.0}),
    "bare-fast": BASE.model_copy(update={"attention_bias": False, "activation": "gelu_fast", "rope_theta": 500.0}),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
