"""The other side of `bench_learning`: TRL 1.12's PPOTrainer on the models and prompts of a quickstart run.

Run in a process of its own, with TRL 1.12 in front of the installed one. It logs what our loop logs, under the same
names, so that `rlhf report` draws both.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

LOGGED = ("objective/scores", "objective/kl", "objective/rlhf_reward")


class MetricsFile(TrainerCallback):
    """Appends a line a step to metrics.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._path, self._step = folder / "metrics.jsonl", 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **keywords: Any) -> None:
        del args, state, control, keywords
        if logs and LOGGED[0] in logs:
            self._step += 1
            row = {"step": self._step, **{name: logs[name] for name in LOGGED}}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--library", type=Path, required=True, help="folder with TRL 1.12.0")
    parser.add_argument("config", type=Path, help="configuration of our side; run_dir is where the metrics go")
    options = parser.parse_args()
    settings = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    sys.path.insert(0, str(options.library))
    from trl.experimental.ppo import (  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - found only behind that line
        PPOConfig,
        PPOTrainer,
    )

    torch.manual_seed(settings["seed"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model"]["path"], padding_side="left")
    reward, value = _scalar_model(settings), _scalar_model(settings)
    steps, samples = settings["steps"], settings["rollout"]["prompts_per_step"]
    rows = [json.loads(line)["prompt"] for line in Path(settings["data"]["train"]).read_text().splitlines()]
    ids = [tokenizer(row)["input_ids"] for row in rows[: steps * samples]]
    folder = Path(settings["run_dir"])
    folder.mkdir(parents=True)
    algorithm, tuning = settings["algorithm"], settings["model"]["tuning"]
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=samples,
            gradient_accumulation_steps=1,  # With more it would step once an epoch, whatever the minibatches.
            num_mini_batches=algorithm["minibatches"],
            num_ppo_epochs=algorithm["epochs"],
            total_episodes=steps * samples,
            response_length=settings["rollout"]["sampling"]["max_response_tokens"],
            local_rollout_forward_batch_size=samples,
            stop_token="eos",
            temperature=1.0,
            num_sample_generations=0,
            learning_rate=settings["optimizer"]["learning_rate"],
            kl_coef=algorithm["kl"]["coefficient"],
            kl_estimator="k1",
            gamma=algorithm["gamma"],
            lam=algorithm["gae_lambda"],
            cliprange=algorithm["clip_range"],
            cliprange_value=algorithm["value_clip_range"],
            vf_coef=algorithm["value_coefficient"],
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
            seed=settings["seed"],
            dataloader_pin_memory=False,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(settings["model"]["path"]),
        ref_model=None,
        reward_model=reward.eval().requires_grad_(False),
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        eval_dataset=Dataset.from_dict({"input_ids": ids[:samples]}),
        peft_config=LoraConfig(
            r=tuning["rank"],
            lora_alpha=tuning["alpha"],
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            target_modules="all-linear",
        ),
        callbacks=[MetricsFile(folder)],
    )
    trainer.train()


def _scalar_model(settings: dict[str, Any]) -> Any:
    """The reward model in one piece, with its scale in the head: TRL knows of none."""
    path = Path(settings["reward"][0]["path"])
    base = AutoModelForSequenceClassification.from_pretrained(settings["model"]["path"], num_labels=1)
    model: Any = PeftModel.from_pretrained(base, str(path)).merge_and_unload()
    scale = json.loads((path / "reward_normalizer.json").read_text(encoding="utf-8"))
    head = torch.nn.Linear(model.score.in_features, 1)
    with torch.no_grad():
        head.weight.copy_(model.score.weight / scale["std"])
        head.bias.fill_(-scale["mean"] / scale["std"])
    model.score = head
    return model


if __name__ == "__main__":
    main()
