from modelworks.models.siglip import Config, _image, _text

from .clip import inputs, theirs  # noqa: F401

KIND = "pair"
CONFIGS = {
    "pair": Config(
        text=_text(32, 4, 48, vocab_size=97, n_layers=2, max_len=20),
        image=_image(32, 4, 48, n_layers=2, image_size=12, patch_size=4),
    )
}
