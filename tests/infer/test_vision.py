"""Images to use: made ready as the processors of `transformers` do it (pillow's), then classes, matches and words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import modelworks as mw
from modelworks.base.errors import UserError
from modelworks.cli import main
from modelworks.data import pixels
from modelworks.data.tokenizer import Tokenizer
from modelworks.hub import directory
from modelworks.infer.illustrated import Illustrated
from modelworks.infer.vision import Matcher, Vision

EYE = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 12,
    "patch_size": 4,
}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 300}
TEXTS = ["a cat", "two dogs on a mat", "猫"]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    dice = np.random.default_rng(0)
    return [Image.fromarray(dice.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((17, 40), (33, 12), (9, 9))]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train(TEXTS, 299)


def scrambled(model: Any) -> Any:
    torch.manual_seed(5)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def processor(kind: str, **settings: Any) -> Any:
    import importlib

    module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    return next(getattr(module, name) for name in module.__all__)(**settings)


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("vit", {"size": {"height": 12, "width": 12}}),
        ("vit", {"size": {"height": 20, "width": 14}, "resample": 3, "do_normalize": False}),
        ("deit", {"size": {"height": 16, "width": 16}, "crop_size": {"height": 12, "width": 12}}),
        ("deit", {"size": {"height": 8, "width": 16}, "crop_size": {"height": 12, "width": 12}}),
        ("clip", {"size": {"shortest_edge": 13}, "crop_size": {"height": 12, "width": 12}}),
        ("siglip", {"size": {"height": 12, "width": 12}}),
    ],
)
def test_images_are_made_ready_as_by_their_processors(
    kind: str, settings: Any, images: list[Any], tmp_path: Path
) -> None:
    theirs = processor(kind, **settings)
    theirs.save_pretrained(tmp_path)
    said = json.loads((tmp_path / pixels.FILE).read_text())
    grey = [Image.fromarray(np.asarray(images[0])[..., 0])] if kind in ("clip", "siglip") else []
    for image in [*images, *grey]:
        wanted = torch.from_numpy(np.stack(theirs(image)["pixel_values"]))
        assert (pixels.preparation(said, 12)([image]) - wanted).abs().max() <= 1e-6


def test_classes_of_images(images: list[Any], tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    names = {0: "cat", 1: "dog", 2: "车"}
    model = scrambled(
        ViTForImageClassification(ViTConfig(**EYE, id2label=names, label2id={v: k for k, v in names.items()}))
    )
    model.save_pretrained(tmp_path / "a")
    theirs = processor("vit", size={"height": 12, "width": 12})
    theirs.save_pretrained(tmp_path / "a")
    ours = mw.load(tmp_path / "a", device="cpu")
    assert isinstance(ours, Vision)
    found = ours.classify(images)
    with torch.no_grad():
        wanted = model(torch.from_numpy(np.stack(theirs(images)["pixel_values"]))).logits.softmax(-1)
    got = torch.tensor([[row["probabilities"][name] for name in names.values()] for row in found])
    assert (got - wanted).abs().max() <= 1e-5
    assert [row["label"] for row in found] == [names[best] for best in wanted.argmax(-1).tolist()]
    opened = directory.load(tmp_path / "a")
    directory.save(tmp_path / "b", opened.model, opened.family, opened.config, used=opened.usage)
    images[0].save(tmp_path / "x.png")
    assert mw.load(tmp_path / "b", device="cpu").classify([tmp_path / "x.png"])[0]["probabilities"] == pytest.approx(
        found[0]["probabilities"], abs=1e-6
    )
    (tmp_path / "y.png").write_bytes((tmp_path / "x.png").read_bytes()[:200])
    for name, message in (("y.png", "is no image that can be read"), ("z.png", "there is no such file")):
        with pytest.raises(UserError, match=message):
            ours.classify([str(tmp_path / name)])
    with pytest.raises(UserError, match="a vit with the head 'classes' does not generate; it can classify, embed"):
        ours.generate("a")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_and_images_that_match(kind: str, images: list[Any], words: Tokenizer, tmp_path: Path) -> None:
    import transformers as hf

    texts = {**TEXT, "max_position_embeddings": 20, "pad_token_id": 7, "eos_token_id": 0, "bos_token_id": 5}
    if kind == "clip":
        model = hf.CLIPModel(
            hf.CLIPConfig(text_config=texts | {"eos_token_id": 0}, vision_config=EYE, projection_dim=24)
        )
        theirs = processor(kind, size={"shortest_edge": 13}, crop_size={"height": 12, "width": 12})
    else:
        model = hf.SiglipModel(hf.SiglipConfig(text_config={**texts, "projection_size": 32}, vision_config=EYE))
        theirs = processor(kind, size={"height": 12, "width": 12})
    scrambled(model).save_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    words.save(tmp_path)
    ours = mw.load(tmp_path, device="cpu")
    assert isinstance(ours, Matcher)
    ours.pad = 7 if kind == "siglip" else None
    seen = torch.from_numpy(np.stack(theirs(images)["pixel_values"]))
    rows = [words.encode(text) for text in TEXTS]
    with torch.no_grad():
        if kind == "siglip":  # whole rows, padding read along
            ids = torch.tensor([row + [7] * (20 - len(row)) for row in rows])
            wanted = model(input_ids=ids, pixel_values=seen).logits_per_image.sigmoid()
        else:  # one text after another, each ending where it ends
            logits = [model(input_ids=torch.tensor([[*row, 0]]), pixel_values=seen).logits_per_image for row in rows]
            wanted = torch.cat(logits, 1).softmax(1)
            words.__dict__["around"] = ours.tokenizer.__dict__["around"] = ([], [0])
    got = ours.match(images, TEXTS)
    assert (got - wanted).abs().max() <= 1e-5 and wanted.max() > 0.1
    assert torch.allclose(ours.embed_texts(TEXTS).norm(dim=1), torch.ones(3))
    with pytest.raises(UserError, match=r"text 0 has .* tokens and this model takes 1 to 20"):
        ours.embed_texts(["x y z " * 20])
    words.__dict__.pop("around", None)


def test_words_about_images(
    images: list[Any], words: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers as hf

    text = hf.LlamaConfig(**TEXT, max_position_embeddings=64, eos_token_id=0, bos_token_id=1, pad_token_id=0)
    eye = hf.CLIPVisionConfig(**EYE)
    model = scrambled(
        hf.LlavaForConditionalGeneration(hf.LlavaConfig(vision_config=eye, text_config=text, image_token_id=299))
    )
    model.save_pretrained(tmp_path)
    theirs = processor("clip", size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    theirs.save_pretrained(tmp_path)
    words.save(tmp_path)
    ours = mw.load(tmp_path, device="cpu")
    assert isinstance(ours, Illustrated)
    prompt = "a <image> and <image> 猫"
    a, b, c = (words.encode(part) for part in prompt.split("<image>"))
    ids = torch.tensor([[*a, *[299] * 9, *b, *[299] * 9, *c]])
    seen = torch.from_numpy(np.stack(theirs(images[:2])["pixel_values"]))
    wanted = model.generate(
        input_ids=ids, pixel_values=seen, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )[0, ids.shape[1] :].tolist()
    row, steps = ours._begun(prompt, images[:2], {"max_new_tokens": 8})
    for _ in steps:
        pass
    assert row.tokens == wanted and len(set(wanted)) > 2
    assert ours.generate(prompt, images[:2], max_new_tokens=8) == "".join(
        ours.stream(prompt, images[:2], max_new_tokens=8)
    )
    assert ours.generate("hello", max_new_tokens=3) and ours.generate("x", images[:1], max_new_tokens=3)
    images[0].save(tmp_path / "x.png")
    main(["generate", str(tmp_path), "a cat", "--image", str(tmp_path / "x.png"), "--set", "max_new_tokens=3"])
    assert capsys.readouterr().out == ours.generate("a cat", images[:1], max_new_tokens=3) + "\n"
    with pytest.raises(UserError, match="the text has 2 times <image> and there are 1 images"):
        ours.generate(prompt, images[:1])
    with pytest.raises(UserError, match="the model's context is 64"):
        ours.generate("x y z " * 20, images[:2])
