from modelworks.models.marian import Config

KIND = "encoder_decoder"
BASE = Config(vocab_size=97, d_model=32, n_layers=2, n_decoder_layers=3, n_heads=4, d_ff=48, max_len=64, dropout=0.0)
CONFIGS = {
    "language": BASE,
    "headless": BASE.model_copy(update={"head": "none", "scale_embedding": not BASE.scale_embedding}),
}
