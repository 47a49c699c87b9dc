from modelworks.models._rope import Linear, Llama3, Yarn
from modelworks.models.llama import Config

KIND = "decoder"
BASE = Config(vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=48, max_len=64)
CONFIGS = {
    "untied": BASE,
    "tied-llama3": BASE.model_copy(
        update={"tie_word_embeddings": True, "rope_scaling": Llama3(original_max_len=16), "rope_theta": 500_000.0}
    ),
    "linear-biases": BASE.model_copy(
        update={"rope_scaling": Linear(factor=4.0), "attention_bias": True, "mlp_bias": True}
    ),
    "yarn": BASE.model_copy(update={"rope_scaling": Yarn(factor=4.0, original_max_len=16), "n_kv_heads": 4}),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
