"""Hugging Face's Trainer on a small GPT-2, with accumulation, clipping and evaluation."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import helper
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

torch.set_num_threads(1)
torch.manual_seed(0)
config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)
tokens = torch.randint(32, (32, 8))
data = [{"input_ids": row, "labels": row} for row in tokens]
model = GPT2LMHeadModel(config)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="out",
        max_steps=6,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    ),
    train_dataset=data,
    eval_dataset=data[:8],
)
trainer.train()
logged = [entry for entry in trainer.state.log_history if "loss" in entry]
print([(entry["step"], entry["loss"], entry["grad_norm"]) for entry in logged])
model.lm_head = None  # tied to the embedding
helper.show(model, optimizer=trainer.optimizer)
