from modelworks.models.phi3 import Config, LongRope

KIND = "decoder"
BASE = Config(vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=48, max_len=64)
SHORT, LONG = (1.0, 1.1, 1.3, 1.7), (1.2, 2.0, 5.0, 9.0)
CONFIGS = {
    "window": BASE.model_copy(update={"window": 5}),
    "short-tied": BASE.model_copy(
        update={
            "max_len": 128,
            "rope_scaling": LongRope(short=SHORT, long=LONG, original_max_len=32),
            "tie_word_embeddings": True,
        }
    ),
    "long-partly": BASE.model_copy(
        update={
            "d_head": 16,
            "d_model": 64,
            "rotary_share": 0.5,
            "rope_scaling": LongRope(short=SHORT, long=LONG, original_max_len=7, attention_factor=1.25),
        }
    ),
    "headless": BASE.model_copy(update={"head": "none"}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3}),
}
