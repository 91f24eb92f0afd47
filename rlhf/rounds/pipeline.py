"""`rlhf rounds`: rounds of collecting, ranking, reward model and PPO, each from the policy of the one before.

Owns the order and what a round hands to the next: its policy, which is continued, and its comparisons. Every training
stage is the function that its command runs, with a run folder of its own (round-1/reward, round-1/ppo, ...).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from policies.tokenization import load_tokenizer
from reward.composite import build_reward
from rlhf.answer_sampler import AnswerSampler
from rlhf.config import RoundsConfig, ScoreRanker
from rlhf.data import load_rows
from rlhf.evaluation import command as evaluation
from rlhf.evaluation.measurements import model_names
from rlhf.reports.page import write_report
from rlhf.rounds.page import rounds_page
from rlhf.rounds.provenance import Provenance
from rlhf.rounds.ranking import SHAPE, rank_by_score, read_rankings
from rlhf.runtime import json_lines
from rlhf.runtime.lineage import inputs_of, item_of, output_of
from rlhf.runtime.run_folder import RunFiles, open_run
from rlhf.stage_chain import StageChain
from rlhf.stage_progress import StageProgress
from rlhf.trainers import ppo, reward


@dataclass(frozen=True, slots=True)
class RoundFiles:
    """Names inside the folder of one round."""

    path: Path

    @property
    def answers(self) -> Path:
        """What was collected, and is to be ranked."""
        return self.path / "answers.jsonl"

    @property
    def rankings(self) -> Path:
        """The same with a `ranking`; people write it themselves."""
        return self.path / "rankings.jsonl"

    @property
    def train(self) -> Path:
        """Comparisons that the reward model learns from."""
        return self.path / "comparisons.jsonl"

    @property
    def held_out(self) -> Path:
        """Comparisons that measure it."""
        return self.path / "comparisons-eval.jsonl"

    @property
    def demonstrations(self) -> Path:
        """An answer to each prompt, for the zero of the scores."""
        return self.path / "demonstrations.jsonl"

    @property
    def reward(self) -> Path:
        """Run folder of the reward model."""
        return self.path / "reward"

    @property
    def ppo(self) -> Path:
        """Run folder of PPO."""
        return self.path / "ppo"


def run(config: RoundsConfig, *, resume: bool) -> None:
    """Runs the rounds, or goes on with them; stops where people have to rank, and says so.

    Raises:
        ValueError: what the user can fix.
    """
    root = Path(config.run_dir)
    with open_run(root, config, resume=resume) as folder:
        rounds = Rounds(config, root)
        summary = rounds.run()
        if summary is None:
            return
        folder.write_summary(summary)
        page = write_report(root, rounds_page(root, summary, rounds.provenance.records))
    Console(highlight=False).print(f"report: {page}", markup=False, soft_wrap=True)


class Rounds:
    """All rounds of one folder; what is done is not done again."""

    def __init__(self, config: RoundsConfig, root: Path) -> None:
        self._config, self._root = config, root
        self.provenance = Provenance(root)

    def run(self) -> dict[str, Any] | None:
        """The summary; None where people have to rank first."""
        with StageProgress(_titles(self._config)) as progress:
            chain = StageChain(self._root, progress)
            for number in range(1, self._config.rounds + 1):
                if not self._round(chain, number):
                    return None
            if self._config.judges:
                policies = [self._policy(number) for number in range(1, self._config.rounds + 1)]
                stage = self._config.eval_stage(str(self._root / "eval"), policies)
                chain.do("eval", lambda: evaluation.run(stage, resume=RunFiles(stage.run_dir).holds_run()))
        return self._summary(chain.seconds)

    def _round(self, chain: StageChain, number: int) -> bool:
        """One round; False where its rankings are missing."""
        files = self._files(number)
        chain.do(f"round-{number}/collect", lambda: self._collect(number))
        if isinstance(self._config.ranker, ScoreRanker):
            ranker = self._config.ranker
            chain.do(f"round-{number}/rank", lambda: self._rank(number, ranker))
        elif not files.rankings.exists():
            _ask_for_rankings(files)
            return False
        chain.do(f"round-{number}/split", lambda: self._split(number))
        learn = self._config.reward_stage(
            str(files.reward),
            self._config.model.path,
            train=str(files.train),
            held_out=str(files.held_out),
            normalize=str(files.demonstrations),
        )
        chain.train(f"round-{number}/reward", reward.run, learn)
        self._note(number, "reward", learn.model_dump(mode="json"), files.reward)
        optimise = self._config.ppo_stage(
            str(files.ppo), self._policy(number - 1), reward_model=str(files.reward / "model")
        )
        chain.train(f"round-{number}/ppo", ppo.run, optimise)
        self._note(number, "ppo", optimise.model_dump(mode="json"), files.ppo)
        return True

    def _collect(self, number: int) -> None:
        """Answers of the policy that the round before has left, to the prompts whose turn it is."""
        collect, files = self._config.collect, self._files(number)
        rows = load_rows(self._config.data.train)
        turn = [rows[(place + (number - 1) * collect.prompts) % len(rows)] for place in range(collect.prompts)]
        policy = self._config.model.model_copy(update={"path": self._policy(number - 1)})
        sampler = AnswerSampler(
            policy,
            sampling=collect.sampling,
            responses=collect.responses_per_prompt,
            max_prompt_tokens=collect.max_prompt_tokens,
            seed=self._config.seed + number,
        )
        answers = sampler.sample(turn, source=f"data.train={self._config.data.train}")
        fields = {sampler.text_of(row): {key: row[key] for key in row if key != "prompt"} for row in turn}
        found = [
            {"prompt": prompt, "responses": texts, "source": f"round-{number}", "fields": fields.get(prompt, {})}
            for prompt, texts in answers.items()
        ]
        files.path.mkdir(parents=True, exist_ok=True)
        json_lines.write_objects(files.answers, [row for row in found if len(row["responses"]) > 1])
        first = [{"prompt": row["prompt"], "completion": row["responses"][0]} for row in found]
        json_lines.write_objects(files.demonstrations, first[: collect.held_out])
        inputs = [item_of("model", policy.path), item_of("dataset", self._config.data.train)]
        self.provenance.note(number, "collect", inputs, item_of("dataset", str(files.answers)), answers=len(found))

    def _rank(self, number: int, ranker: ScoreRanker) -> None:
        files = self._files(number)
        tokenizer = load_tokenizer(self._config.model)
        judge = build_reward(ranker.reward, policy_tokenizer=tokenizer)
        rows = rank_by_score(json_lines.read_objects(files.answers), judge, tie=ranker.tie)
        json_lines.write_objects(files.rankings, rows)

    def _split(self, number: int) -> None:
        """Rankings into those that train, with those of earlier rounds, and those that are held out.

        Where prompts come up again in a later round, what was said of a held-out one before does not train either.
        """
        files, held_out = self._files(number), self._config.collect.held_out
        rows = (
            read_rankings(files.rankings, json_lines.read_objects(files.answers))
            if self._by_people
            else (json_lines.read_objects(files.rankings))
        )
        if len(rows) <= held_out:
            raise ValueError(
                f"{files.rankings}: {len(rows)} rankings with a preference are no more than "
                f"collect.held_out={held_out}, so none would train; rank more, or lower it"
            )
        json_lines.write_objects(files.held_out, rows[:held_out])
        unseen = {row["prompt"] for row in rows[:held_out]}
        earlier = range(1, number) if self._config.comparisons == "all" else ()
        before = [self._files(one).path / "own.jsonl" for one in earlier]
        json_lines.write_objects(files.path / "own.jsonl", rows[held_out:])
        told = [row for path in before for row in json_lines.read_objects(path)]
        kept = [row for row in told if row["prompt"] not in unseen] + rows[held_out:]
        json_lines.write_objects(files.train, kept)
        inputs = [item_of("dataset", str(path)) for path in (files.answers, files.rankings, *before)]
        ranked_by = self._config.ranker.model_dump(mode="json")
        output = item_of("dataset", str(files.train))
        self.provenance.note(number, "rank", inputs, output, ranker=ranked_by, comparisons=len(kept))

    def _note(self, number: int, step: str, config: Mapping[str, Any], folder: Path) -> None:
        self.provenance.note(number, step, inputs_of(config), output_of(folder))

    def _summary(self, seconds: Mapping[str, float]) -> dict[str, Any]:
        judged = self._judged()
        found: dict[str, Any] = {}
        for number in range(1, self._config.rounds + 1):
            files = self._files(number)
            learned, optimised = (RunFiles(path).read_summary() for path in (files.reward, files.ppo))
            found[f"round-{number}"] = {
                "comparisons": len(json_lines.read_objects(files.train)),
                "reward_accuracy": learned["accuracy"],
                "score_start": optimised["score_start"],
                "score_end": optimised["score_end"],
                "kl": optimised["kl"],
                **judged.get(number, {}),
            }
        return {"rounds": found, "seconds": dict(seconds), "seconds_total": sum(seconds.values())}

    def _judged(self) -> dict[int, dict[str, Any]]:
        """What the judges at the end say of each round's policy, against the start; empty without judges."""
        evaluated: Any = RunFiles(self._root / "eval").read_summary()
        if not evaluated:
            return {}
        *earlier, last = range(1, self._config.rounds + 1)
        names = model_names([self._policy(number) for number in earlier])
        models: list[Mapping[str, Any]] = [evaluated["models"][name] for name in names]
        whole = {**evaluated, "components": evaluated["candidate"]["components"]}
        return {number: _judgement(one) for number, one in zip([*earlier, last], [*models, whole], strict=True)}

    @property
    def _by_people(self) -> bool:
        return not isinstance(self._config.ranker, ScoreRanker)

    def _files(self, number: int) -> RoundFiles:
        return RoundFiles(self._root / f"round-{number}")

    def _policy(self, number: int) -> str:
        """The policy that a round has left; of round 0, the one that all begins with."""
        return str(self._files(number).ppo / "model") if number else self._config.model.path


def _titles(config: RoundsConfig) -> dict[str, str]:
    steps = {"collect": "answers", "rank": "rankings", "split": "comparisons", "reward": "reward model", "ppo": "PPO"}
    if not isinstance(config.ranker, ScoreRanker):
        del steps["rank"]
    rounds = range(1, config.rounds + 1)
    titles = {f"round-{number}/{step}": f"round {number}: {word}" for number in rounds for step, word in steps.items()}
    return titles | ({"eval": "compare the rounds"} if config.judges else {})


def _judgement(model: Mapping[str, Any]) -> dict[str, Any]:
    scores = {f"judge_{name}": value for name, value in model["components"].items()}
    return {
        "win_rate": model["win_rate"],
        "win_rate_low": model["win_rate_low"],
        "win_rate_high": model["win_rate_high"],
        "kl_from_start": model["kl"],
        **scores,
    }


def _ask_for_rankings(files: RoundFiles) -> None:
    answers = len(json_lines.read_objects(files.answers))
    Console(highlight=False).print(
        f"{answers} prompts wait to be ranked in {files.answers}\n"
        f"write {files.rankings}, a line for each prompt: {SHAPE}\n"
        "with prompt and responses as they are there, and groups of indices from 0, best first, ties in one group; "
        "then run the same command with --resume",
        markup=False,
        soft_wrap=True,
    )
