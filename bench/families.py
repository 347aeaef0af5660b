"""Which families of models work: each is built tiny, trained for 4 steps, exported, and compared under plain PEFT.

    make families [ARGS=families=Llama,Mamba]

All families write the table of docs/models.md. The reference reads every option in a row of its own, alone, with
nothing of this project but the files that it exported.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import transformers as hf
from peft import PeftModel
from PIL import Image
from tiny_models import TEXT, VISION, QwenProcessor, save_text, save_vision

from contextlora import ContextLora, ContextLoraModule, ContextLoraSettings, Item, Task, TaskSet, TaskSetDataModule
from contextlora.adapters import export_adapter
from contextlora.adapters.targets import experts_left_out
from contextlora.backbones import load as backbones
from contextlora.backbones.load import load_backbone
from contextlora.commands.bench import read_arguments
from contextlora.errors import UserError
from contextlora.evaluation.report import markdown_table
from contextlora.tasks.prompts import Prompt
from contextlora.training.fit import TrainerSettings, fit
from contextlora.training.optimizer import OptimizerSettings
from contextlora.training.stages import StageLength

TOLERANCE = 1e-4
DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
OPTIONS = ("main bridge", "river side lane", "red")


@dataclass(frozen=True)
class Found:
    """How far a family's scores are from those of plain PEFT, how far training moved them, and what was done."""

    off: float
    moved: float
    way: str
    adapted: str
    experts: str


def make_taskset(folder: Path, images: Sequence[str] = ()) -> TaskSet:
    """Two tasks, one of which needs the other, with a few items."""
    tasks = [Task("first", (), 3), Task("second", ("first",), 3)]
    items = {}
    for task in tasks:
        for split in ("train", "validation", "test"):
            items[task.name, split] = [
                Item(
                    id=f"{split}-{n}",
                    scene=f"{split}-{n}",
                    question=f"{'red ' * (n % 3)}sees {'green' if n % 2 else 'blue'} ?",
                    options=(options := OPTIONS[n % 2 :] + OPTIONS[: n % 2]),
                    answer=options.index(OPTIONS[n % 3]),
                    image=images[n % len(images)] if images else None,
                    prerequisites={"first": OPTIONS[n % 3]} if task.prerequisites else {},
                )
                for n in range(4)
            ]
    return TaskSet.from_items(tasks, items, name="families", folder=folder)


def check(folder: Path, work: Path, answer_format: str, images: Sequence[str] = ()) -> Found:
    """Trains the model of a folder, exports it, and compares with plain PEFT."""
    backbone = load_backbone(str(folder), dtype="float32")
    data = TaskSetDataModule(
        make_taskset(work, images),
        backbone,
        batch_size=4,
        eval_batch_size=4,
        answer_format=answer_format,
        context="gold",
    )
    module = ContextLoraModule(
        data,
        ContextLora(ContextLoraSettings(rank=2, alpha=4)),
        length=StageLength(4, 4, 0),
        optimizer=OptimizerSettings(learning_rate=0.02),
    )
    fit(module, TrainerSettings("cpu"), work / "checkpoints", work / "metrics.jsonl", lambda *_: None, None)
    task, adapted = "second", module.adapted.eval()
    export_adapter(adapted, task, module.uses[task], work / "adapter", str(folder))
    ours, untrained = (module.evaluator.predict(task, "test", "gold", use).scores for use in (module.uses[task], None))
    items = data.taskset.items(task, "test")
    prompts = [data.prompt(task, item, data.right_context(task, item)) for item in items]
    plain = Plain(folder, work / "adapter", backbone.image_token)
    theirs = torch.stack([plain.scores(prompt) for prompt in prompts])
    # Of the batch itself: a model that can pack does not where it has a window, or types of tokens.
    batch = backbone.encode(prompts)
    way = "packed behind the prompt" if batch.num_read else "in a second forward"
    names = sorted({name.rpartition(".")[2] for name in adapted.layers()})
    return Found(
        float((ours - theirs).abs().max()),
        float((ours - untrained).abs().max()),
        "each in a row of its own" if batch.own_rows else way,
        " ".join(names),
        "yes" if experts_left_out(adapted.model) else "",
    )


class Plain:
    """transformers and PEFT alone: every option in a row of its own, without cache, mask or padding."""

    def __init__(self, folder: Path, adapter: Path, image_token: str | None) -> None:
        self.image_token = image_token
        auto = hf.AutoModelForImageTextToText if image_token else hf.AutoModelForCausalLM
        base = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.model = PeftModel.from_pretrained(base, adapter).eval()
        self.read = (
            backbones.AutoProcessor.from_pretrained(folder) if image_token else hf.AutoTokenizer.from_pretrained(folder)
        )

    @torch.no_grad()
    def scores(self, prompt: Prompt) -> torch.Tensor:
        """(K,) log-likelihoods."""
        start = self._inputs(prompt, "")["input_ids"].shape[1]
        found = []
        for option in prompt.continuations:
            inputs = self._inputs(prompt, f" {option}")
            ids = inputs["input_ids"]
            logits = self.model(**inputs, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
            found.append(logits.gather(1, ids[0, start:, None]).sum())
        return torch.stack(found)

    def _inputs(self, prompt: Prompt, behind: str) -> dict[str, torch.Tensor]:
        text = prompt.text + behind
        if not prompt.image_path:
            return {"input_ids": self.read(text, return_tensors="pt")["input_ids"]}
        image = Image.open(prompt.image_path).convert("RGB")
        given = {"images": [image], "return_tensors": "pt"}
        if not isinstance(self.read, hf.PaliGemmaProcessor):
            return self.read(text=[text.replace("<image>", self.image_token)], **given)
        inputs = self.read(text=[prompt.text], suffix=[behind], **given)
        # Without labels and the end token that it puts behind a suffix.
        return {
            name: value if name == "pixel_values" else value[:, :-1]
            for name, value in inputs.items()
            if name != "labels"
        }


def main() -> None:
    """Checks families and writes the table."""
    (families,), _ = read_arguments(sys.argv[1:], families="all")
    rows = [row_of(family) for family in ([*TEXT, *VISION] if families == "all" else families.split(","))]
    header = ["family", "options of several tokens", "letters", "options are read", "adapted", "experts left out"]
    table = markdown_table(header, rows)
    print(table)
    if families == "all":
        write_table(table)


def row_of(family: str) -> list[str]:
    """A family's row of the table."""
    print(family, file=sys.stderr, flush=True)
    cells, found = [], None
    for answer_format in ("word", "letter"):
        with tempfile.TemporaryDirectory() as work:
            try:
                last = check_family(family, Path(work), answer_format)
                found = found or last  # of options of several tokens: letters need one forward only
                works = last.off <= TOLERANCE < last.moved
                cells.append(f"{'works' if works else 'WRONG'}, {last.off:.0e}")
            except UserError as error:
                print(error, file=sys.stderr)
                cells.append("refused")
    return [family, *cells, *((found.way, found.adapted, found.experts) if found else ("", "", ""))]


def write_table(table: str) -> None:
    """Puts it in the place of the one in docs/models.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition("\n| family")
    behind = rest[rest.index("\n\n") :] if "\n\n" in rest else "\n"
    DOCUMENT.write_text(f"{before}\n{table.strip()}{behind}", encoding="utf-8")


def check_family(family: str, work: Path, answer_format: str) -> Found:
    """Makes the model and what it reads in a folder, and checks it."""
    (save_text if family in TEXT else save_vision)(family, work / "model")
    if "VL" in family:
        tokenizer = hf.AutoTokenizer.from_pretrained(work / "model")
        with patch.object(backbones.AutoProcessor, "from_pretrained", lambda *_, **__: QwenProcessor(tokenizer, 8)):
            return check(work / "model", work, answer_format, make_images(work))
    return check(work / "model", work, answer_format, make_images(work) if family in VISION else ())


def make_images(folder: Path) -> list[str]:
    """Noise of unlike sizes and shapes."""
    rng = np.random.default_rng(0)
    sizes = {"square.png": (40, 40), "wide.png": (64, 28), "high.png": (24, 60)}
    for name, size in sizes.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return list(sizes)


if __name__ == "__main__":
    main()
