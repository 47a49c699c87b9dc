"""Every family opens as something of its kind, and says in a sentence what it cannot do."""

from __future__ import annotations

import pytest
import torch

from modelworks.base.errors import UserError
from modelworks.hub.directory import Loaded
from modelworks.infer.opened import VERBS
from modelworks.recipes import opening

from ..contracts import kinds

WANTED = {
    "decoder": {"language": "LanguageModel", "none": "TextEncoder", "classes": "TextClassifier"},
    "encoder": {"masked_lm": "GapFiller", "none": "TextEncoder", "classes": "TextClassifier", "tokens": "Tagger"},
    "encoder_decoder": {"language": "TextToText", "none": "TextEncoder"},
    "vision": {"classes": "Vision", "distilled": "Vision", "none": "Vision"},
    "pair": {None: "Matcher"},
    "vision_language": {None: "Illustrated"},
}


@pytest.mark.parametrize("case", kinds.cases(), ids=str)
def test_every_family_opens_as_its_kind(case: kinds.Case) -> None:
    model = opening.usable(Loaded(case.family.build(case.config), None, case.name, case.config, {"made": "here"}))
    wanted = WANTED[case.kind][getattr(case.config, "head", None)]
    assert type(model).__name__ == ("Speech" if case.name == "whisper" else wanted)
    can = [verb for verb in VERBS if hasattr(model, verb)]
    assert can
    for verb in set(VERBS) - set(can):
        with pytest.raises(UserError, match=f"does not {verb}; it can {', '.join(can)}"):
            getattr(model, verb)("x")


def test_a_speech_model_without_a_head_says_so() -> None:
    case = next(case for case in kinds.cases() if str(case) == "whisper-headless")
    model = opening.usable(Loaded(case.family.build(case.config), None, case.name, case.config, {}))
    with pytest.raises(UserError, match="this whisper has no head, so it writes nothing"):
        model.transcribe(torch.zeros(10))
