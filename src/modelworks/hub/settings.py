"""What of a config.json a family has read: a setting that nobody read may change the maths, so it is refused.

No family keeps a list. Its `from_hf` reads what it does, and names in `need` what it does not; the settings note
what was asked for, and the rest must be known to be harmless.
"""

from __future__ import annotations

import re
from typing import Any

from ..base.errors import UserError

HARMLESS = re.compile(
    # who wrote the file, in what format, with what code of its own (which is never run)
    r"_.*|architectures|model_type|transformers_version|name_or_path|auto_map|tokenizer_class|processor_class|language"
    r"|finetuning_task|(torch_)?dtype|torchscript|use_bfloat16|tf_legacy_loss|base_model_.*"
    # what a pass returns, and how it is computed without another result
    r"|return_dict|output_(attentions|hidden_states|past|scores|router_logits)|use_return_dict|use_cache"
    r"|chunk_size_feed_forward|gradient_checkpointing|pretraining_tp|reorder_and_upcast_attn"
    r"|deterministic_flash_attn|reference_compile|repad_logits_with_grad|median_filter_width"
    # what only training asks: dropout, fresh weights, losses of routers, noise
    r"|.*(drop|dropout)(_rate|_prob|_p)?|(dropout|drop)_rate|initializer_.*|init_std|init_xavier_std"
    r"|logit_scale_init_value|router_(aux_loss_coef|jitter_noise|z_loss_coef)|problem_type|sparse_prediction"
    r"|sparse_pred_ignore_index|apply_spec_augment|mask_(time|feature)_.*|encoder_stride"
    # ids of words and names of classes
    r"|.*_token_ids?|.*_token_index|id2label|label2id|num_labels|forced_.*|suppress_tokens|begin_suppress_tokens"
    # what generation starts from
    r"|max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature|top_[kp]"
    r"|typical_p|repetition_penalty|length_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids|num_return_sequences"
    r"|exponential_decay_length_penalty|remove_invalid_values|prefix|task_specific_params"
    # heads for other tasks than the one that is opened
    r"|summary_.*|classifier_.*|classif_.*|qa_.*|is_encoder_decoder|tie_encoder_decoder"
)
"""Settings that change no number of a pass, whatever they are."""


class Noted(dict[str, Any]):
    """Settings that note which of them are read. A part's own (`text_config`) are noted the same way."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._read: set[str] = set()
        self._parts: dict[str, Noted] = {}

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self._read.add(key)
        if isinstance(value, dict) and key.endswith("_config"):
            return self._parts.setdefault(key, Noted(value))
        return value

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 - this is what get means

    def unread(self) -> list[str]:
        """Names of the settings that are given, were not asked for and are not known to be harmless."""
        mine = [
            key
            for key, value in self.items()
            if key not in self._read and value is not None and value != {} and not HARMLESS.fullmatch(key)
        ]
        return mine + [f"{name}.{key}" for name, part in self._parts.items() for key in part.unread()]

    def refuse_unread(self, family: str) -> None:
        """Raises UserError naming the first setting that was not read."""
        for key in self.unread():
            value: Any = self
            for step in key.split("."):
                value = dict.__getitem__(value, step)
            raise UserError(
                f"config.json: '{key}' is {str(value)[:60]}, a setting that our {family} does not know; it may change "
                "the maths, so this checkpoint is not opened (take the line out where you know that it does not)."
            )
