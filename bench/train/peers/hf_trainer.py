"""transformers: GPT2LMHeadModel (attention: sdpa, no dropout) under Trainer, fused AdamW, logging every tenth step."""

from __future__ import annotations

from task import Clock, Task
from torch.utils.data import Dataset


class Windows(Dataset):
    """Windows of `block` tokens; the model shifts the labels itself."""

    def __init__(self, task: Task) -> None:
        self.rows = task.windows(task.block)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, object]:
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


def main() -> None:
    task = Task.read()
    import transformers

    clock = Clock(task)
    config = transformers.GPT2Config(
        vocab_size=task.vocab, n_positions=task.block, n_embd=task.width, n_layer=task.layers, n_head=task.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    arguments = transformers.TrainingArguments(
        output_dir=task.scratch, use_cpu=True, bf16=task.precision == "bf16", torch_compile=task.compile,
        per_device_train_batch_size=task.batch, max_steps=task.steps, optim="adamw_torch_fused", learning_rate=1e-3,
        weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0, lr_scheduler_type="constant", logging_steps=10,
        save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False, seed=1,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Windows(task))
    clock.watch_optimisers()
    clock.begin()
    result = trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    clock.finish(losses[-1] if losses else result.training_loss, transformers=transformers.__version__)


if __name__ == "__main__":
    main()
