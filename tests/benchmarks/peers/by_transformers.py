"""The Hugging Face Trainer on a plain module; needs `uv run --with transformers`."""

from typing import Any

import torch
import transformers
import work
from torch import Tensor, nn
from torch.utils.data import default_collate


class Classifier(nn.Module):
    """The Trainer gives inputs by name, and takes the loss from what comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = work.model()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.net(images)  # (batch, 10)
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def named(samples: list[Any]) -> dict[str, Tensor]:
    images, labels = default_collate(samples)
    return {"images": images, "labels": labels}


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


work.timed()
torch.manual_seed(0)
train, test = work.torchvision_sets()
size = work.BATCH // work.WORLD
arguments = transformers.TrainingArguments(
    use_cpu=True, ddp_backend="gloo" if work.WORLD > 1 else None, num_train_epochs=1,
    per_device_train_batch_size=size, per_device_eval_batch_size=size,
    optim="sgd", learning_rate=work.RATE, lr_scheduler_type="constant", max_grad_norm=0,
    logging_steps=100, save_strategy="no", report_to="none", disable_tqdm=True,
)  # fmt: skip
trainer = transformers.Trainer(
    Classifier(), arguments, named, train, test, compute_metrics=accuracy
)
trainer.train()
result = trainer.evaluate()
if trainer.is_world_process_zero():
    work.report(result["eval_accuracy"])
