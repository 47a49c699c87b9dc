from modelworks.models.t5 import Config

KIND = "encoder_decoder"
BASE = Config(
    vocab_size=97, d_model=32, n_layers=2, n_decoder_layers=3, n_heads=4, d_head=6, d_ff=48, n_buckets=8,
    max_distance=12, dropout=0.0,
)  # fmt: skip
CONFIGS = {
    "language": BASE,
    "unscaled": BASE.model_copy(update={"feedforward": "gated-gelu", "scale_outputs": False}),
    "headless": BASE.model_copy(update={"head": "none"}),
}
