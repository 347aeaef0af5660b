"""The schema of a run's settings, which is also their documentation: `contextlora train --help` prints it.

How files and arguments fill it is the business of `contextlora.config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from contextlora.limits import check_values


def setting(
    default: Any, text: str, *, is_path: bool = False, refused: dict[str, str] | None = None, **limits: float
) -> Any:
    """A dataclass field with its documentation and limits, which also hold for the values of a dict.

    Args:
        default, text: of the field.
        is_path: whether it names a file or folder, or may do so.
        refused: values that one might expect -> why they are none.
        limits: `minimum` and `maximum`, which the value may reach; `above` and `below`, which it may not.
    """
    is_mutable = isinstance(default, dict | list)
    # A dataclass takes no mutable default: every instance gets a copy.
    value = {"default_factory": lambda: type(default)(default)} if is_mutable else {"default": default}
    return field(**value, metadata={"text": text, "is_path": is_path, "refused": refused or {}, **limits})


class Section:
    """Settings that are checked whenever an instance is made; `section` is their place in the configuration."""

    section = ""  # no annotation: it is no field

    def __post_init__(self) -> None:
        check_values(self, self.section and f"{self.section}.")


@dataclass
class TasksetConfig(Section):
    """Which tasks, and how their items become prompts."""

    section = "taskset"
    name: str = setting("iov", "shipped task set, or the path of a task-set folder", is_path=True)
    regime: Literal["low", "full"] = setting("low", "size of a shipped set: a few hundred items per task, or all")
    train_items: int | None = setting(
        None, "only the first so many train items of each task, for learning curves; null takes all", minimum=1
    )
    seed: int = setting(0, "seed of a shipped set's items; independent of the run's seed", minimum=0)
    data_dir: str = setting("data", "where shipped sets are generated on first use", is_path=True)
    context: Literal["none", "gold", "predicted"] = setting(
        "none", "prerequisites' answers in the prompts while training; the evaluation is also end to end in any case"
    )
    scope: Literal["direct", "ancestors"] = setting(
        "direct", "a task's prerequisites: its direct parents, or all its ancestors; for slices and for context"
    )
    answer_format: Literal["word", "letter"] = setting("word", "score the option words or the option letters")
    length_normalised: bool = setting(
        False, "divide an option's score by its characters: lm-evaluation-harness's acc_norm; else its acc"
    )
    image: Literal["auto", "image", "text"] = setting("auto", "show the image or its text view; auto: as the model can")


@dataclass
class MethodSettings(Section):
    """What every method has; a method adds settings of its own in its file of `contextlora.methods`."""

    section = "method"
    name: str = setting("", "training method, a file of configs/method")
    rank: int = setting(8, "LoRA ranks per task (r_v)", minimum=1, maximum=4096)
    alpha: float = setting(16.0, "LoRA scale numerator: every slice is scaled by alpha / rank", above=0)
    dropout: float = setting(0.0, "dropout probability on the LoRA input", minimum=0, maximum=0.99)
    learning_rate_scale: float = setting(
        1.0, "times training.learning_rate: what suits the method, whatever the model", above=0
    )


@dataclass
class ModelConfig(Section):
    """The frozen language model."""

    section = "model"
    name: str = setting("bundled", "the bundled backbone, a checkpoint folder, or a hub id (owner/name)", is_path=True)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "type of the frozen weights; auto: bfloat16 where the processor computes it natively"
    )
    quantization: Literal["none", "8bit", "4bit"] = setting(
        "none", "bits of the frozen weights, by bitsandbytes (pip install -e '.[quantization]')"
    )
    attn_implementation: str = setting(
        "eager",
        "attention of transformers, such as eager or sdpa; auto measures which of these two reads a first batch "
        "faster; eager is fastest on CPU at short lengths",
    )
    gradient_checkpointing: bool = setting(
        False, "keep less for the backward, which repeats each block's forward: far less memory, some 40 % more time"
    )
    target_modules: str = setting(
        "language-linear",
        "what gets LoRA: all linear layers of the language model's blocks, or a regex of module names",
    )
    chat_template: Literal["auto", "off"] = setting("auto", "wrap prompts in the model's chat template if it has one")
    trust_remote_code: bool = setting(False, "run code that comes with the checkpoint; it may do all that you may do")


@dataclass
class TrainingConfig(Section):
    """Optimisation; every stage starts a new optimizer and schedule."""

    section = "training"
    learning_rate: float = setting(
        2e-4, "peak learning rate of a task's own ranks; the default suits models of billions of parameters", above=0
    )
    weight_decay: float = setting(0.0, "AdamW weight decay", minimum=0)
    # A plan counts item by item: more would take it minutes.
    batch_size: int = setting(32, "items per step, all of one task", minimum=1, maximum=16384)
    micro_batch_size: int | Literal["auto"] | None = setting(
        None,
        "items of a step that are computed at once, one part after the other, to the same gradient; null: all of them, "
        "auto: as many as memory holds",
        minimum=1,
    )
    steps_per_task: int = setting(140, "most optimizer steps per task", minimum=1)
    validate_every_steps: int = setting(35, "steps between validations and checkpoints", minimum=1)
    validation_items: int | None = setting(
        None, "items of each task in a validation while training, evenly taken; null takes all", minimum=1
    )
    patience: int = setting(2, "validations without improvement that end a stage; 0 trains all steps", minimum=0)
    warmup_share: float = setting(0.05, "share of a stage's steps with rising learning rate", minimum=0, below=1)
    gradient_clip: float = setting(1.0, "largest gradient norm; 0 does not clip", minimum=0)
    strategy: Literal["auto", "ddp", "contextgear"] = setting(
        "auto",
        "on several devices: ddp shares every batch evenly, contextgear plans for unequal ones; auto: ddp",
        refused={"fsdp": "it shards parameters once, while every stage makes new ones"},
    )
    devices: int = setting(1, "devices of this machine; torchrun brings its own number of processes", minimum=1)
    accelerator: str = setting("auto", "Lightning accelerator: auto, cpu, gpu ...")
    progress: bool = setting(True, "show progress bars")
    callbacks: list[Any] = setting(  # noqa: RUF009 - it makes a field
        [], "Lightning callbacks of your own: import paths, or {class_path: ..., init_args: {...}}"
    )
    loggers: list[Any] = setting(  # noqa: RUF009 - it makes a field
        [], "Lightning loggers of your own, likewise; they write into the run's folder unless told otherwise"
    )
    trainer: dict[str, Any] = setting(  # noqa: RUF009 - it makes a field
        {}, "further arguments of lightning.Trainer, such as {profiler: simple}"
    )


@dataclass
class EvaluationConfig(Section):
    """What the final tables are computed on."""

    section = "evaluation"
    batch_size: int = setting(128, "items per forward pass", minimum=1)
    split: Literal["validation", "test"] = setting("test", "split of the final tables; tune on validation")
    max_items: int | None = setting(None, "use only so many items of each task, evenly taken", minimum=1)


@dataclass
class TrackingConfig(Section):
    """Weights & Biases."""

    section = "tracking"
    mode: Literal["auto", "online", "offline", "off"] = setting("auto", "auto: online when logged in, else offline")
    project: str = setting("contextlora", "project that a run is logged to")


@dataclass
class GearConfig(Section):
    """Several devices: `contextlora plan`, and training with training.strategy=contextgear."""

    section = "gear"
    devices: str = setting(
        "",
        "device catalogue: a file of configs/devices, or a path; empty: jetson4 to plan, equal ones to train",
        is_path=True,
    )
    context: Literal["predicted", "taskset"] = setting(
        "predicted",
        "answers in the prompts: the model's own, which need forward passes, or as taskset.context says",
    )
    layouts: list[Literal["data", "1f1b", "gpipe"]] = setting(  # noqa: RUF009 - it makes a field
        ["data", "1f1b", "gpipe"],
        "what the devices of a group may share: the items of a batch, or layers (1f1b, gpipe)",
    )
    cache_answers: bool = setting(True, "keep the prerequisites' answers of the first epoch for the later ones")
    queue_batches: int = setting(16, "batches that forward-only devices may be ahead of the trained one", minimum=1)


@dataclass
class RunConfig(Section):
    """Everything that determines a run."""

    taskset: TasksetConfig = field(default_factory=TasksetConfig)
    method: MethodSettings = field(default_factory=MethodSettings)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    gear: GearConfig = field(default_factory=GearConfig)
    seed: int = setting(0, "seed of initial weights and batch order", minimum=0)
    runs_dir: str = setting("runs", "where run folders go", is_path=True)
