"""Each setting changes what it should, and nothing else, of a training of the tiny task set."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from contextlora.assembly.build import build_data, build_module, trainer_settings
from contextlora.config import load_config
from contextlora.training.fit import fit

# Nothing by which an outcome of one stage could reach what the next one reads: all but `end` and `gradients` follow
# from the settings alone.
BASE = (
    *("method.rank=2", "method.delta=0.5", "method.frozen_policy=first", "model.dtype=float32"),
    *("training.learning_rate=1e-2", "training.batch_size=4", "training.steps_per_task=2", "training.patience=0"),
    *("training.validate_every_steps=1", "training.gradient_clip=0", "training.warmup_share=0"),
    *("taskset.context=gold", "training.progress=false"),
)


class Observer(Callback):
    """What can be seen of a training, in `seen`:

    start: the first stage's initial weights.
    prompts: each step's task, tokens and option tokens.
    gradients: each step's, as the optimizer gets them.
    rates, decays: each step's, group by group.
    orders: which ranks stay frozen first, stage by stage.
    gates: where they start, stage by stage.
    steps: of each stage.
    plan: task -> prerequisites with their deltas.
    end: final weights.
    """

    def __init__(self):
        self.seen = SimpleNamespace(prompts=[], gradients=[], rates=[], decays=[], orders=[], gates=[])

    def on_train_epoch_start(self, trainer, module):
        if module.progress.interval == 0:
            if module.progress.stage == 0:
                self.seen.start = module.adapted.state.read()
            self.seen.orders.append(module.adapted.stage_state())
            groups = module.adapted.parameter_groups()
            self.seen.gates.append([gate.tolist() for gate in groups.get("gate", [])])

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.prompts.append((batch.task, batch.inputs["input_ids"].tolist(), batch.option_ids.tolist()))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        names = module.adapted.parameter_groups()
        self.seen.rates.append(dict(zip(names, (group["lr"] for group in optimizer.param_groups), strict=True)))
        self.seen.decays.append(
            dict(zip(names, (group["weight_decay"] for group in optimizer.param_groups), strict=True))
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        weights = [p for group in module.adapted.parameter_groups().values() for p in group if p.grad is not None]
        self.seen.gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))

    def on_train_end(self, trainer, module):
        self.seen.steps, self.seen.end = module.progress.steps_taken, module.adapted.state.read()
        self.seen.plan = {task: dict(use.prerequisites) for task, use in module.plan.uses.items()}


@pytest.fixture(scope="session")
def observed(taskset_folder, model_folder, tmp_path_factory) -> Callable[..., SimpleNamespace]:
    """(settings ...) -> what was seen of a training with them; each training is made once."""
    made = {}

    def observe(*settings):
        if settings not in made:
            folder, observer = tmp_path_factory.mktemp("observed"), Observer()
            config = load_config([f"taskset={taskset_folder}", f"model={model_folder}", *BASE, *settings])
            module = build_module(config, build_data(config))
            files = {"checkpoints": folder, "metrics_file": folder / "metrics.jsonl"}
            keep = {"save_stage": lambda stage, owners: None, "console": None}
            fit(module, trainer_settings(config), **files, **keep, callbacks=[observer])
            made[settings] = observer.seen
        return made[settings]

    return observe


def differs(ours, theirs):
    if isinstance(ours, torch.Tensor):
        return ours.shape != theirs.shape or not torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() != theirs.keys() or any(differs(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and ours and isinstance(ours[0], torch.Tensor):
        return len(ours) != len(theirs) or any(map(differs, ours, theirs))
    return ours != theirs


# Without a word: the weights in the end differ. `gradients` are those of the first step here.
CHANGES = {
    "training.learning_rate=2e-2": "rates",
    "method.learning_rate_scale=0.5": "rates",
    "training.weight_decay=0.5": "decays",
    "training.warmup_share=0.5": "rates",
    "training.gradient_clip=1e-3": "gradients",
    "training.batch_size=8": "prompts gradients",
    "training.steps_per_task=4": "prompts rates decays steps",
    "method.dropout=0.3": "gradients",
    "method.rank=4": "start gradients orders",
    "method.alpha=4": "gradients",
    "method.delta=1.0": "plan rates decays",  # no open ranks, no group of them
    "method.edge_delta={a->c: 1.0}": "plan",
    "method.frozen_policy=random": "orders",
    "method.gate_init=0.3": "start gates",
    "method.gate_learning_rate=0.1": "rates",
    "method.open_learning_rate_scale=0.5": "rates",
    "method.variant=paper": "start gates rates decays",
    "taskset.scope=ancestors": "start plan prompts gates orders",
    "taskset.context=none": "prompts",
    "taskset.answer_format=letter": "prompts gradients",
    "taskset.train_items=6": "prompts gradients",
    "seed=1": "start prompts gradients",
}


@pytest.mark.parametrize("setting", CHANGES)
def test_a_setting_changes_what_it_should_and_nothing_else(setting, observed):
    before, after = vars(observed()).copy(), vars(observed(setting)).copy()
    for seen in (before, after):
        seen["gradients"] = seen["gradients"][0]
    assert {name for name in before if differs(before[name], after[name])} == {*CHANGES[setting].split(), "end"}


def test_patience_ends_a_stage_in_which_nothing_improves(observed):
    still = ("training.learning_rate=1e-30", "method.gate_learning_rate=1e-30", "training.steps_per_task=3")
    assert observed(*still).steps == [6, 3, 3]
    assert observed(*still, "training.patience=1").steps == [4, 2, 2]


def test_rates_are_those_of_the_settings(observed):
    """The first step of a stage has the peak rates; half a cosine leads to 0 over its steps."""
    c = observed().rates[4]  # behind two steps of a and of b
    assert c == pytest.approx({"own": 1e-2, "open": 1e-3, "gate": 1e-2})
    assert observed().rates[5] == pytest.approx({"own": 5e-3, "open": 5e-4, "gate": 5e-3})
    scaled = observed("method.learning_rate_scale=0.5").rates[4]
    assert scaled == pytest.approx({"own": 5e-3, "open": 5e-4, "gate": 1e-2})
    assert observed("method.gate_learning_rate=0.1").rates[4] == pytest.approx({**c, "gate": 0.1})
    assert observed("method.open_learning_rate_scale=0.5").rates[4] == pytest.approx({**c, "open": 5e-3})
    assert observed("training.weight_decay=0.5").decays[4] == {"own": 0.5, "open": 0.5, "gate": 0.0}


def test_every_gradient_is_clipped(observed):
    assert min(float(gradient.norm()) for gradient in observed().gradients) > 1e-3
    norms = [float(gradient.norm()) for gradient in observed("training.gradient_clip=1e-3").gradients]
    assert norms == pytest.approx([1e-3] * 8, rel=1e-3)


def test_prompts_hold_the_answers_of_the_scope(observed, taskset):
    """Of d's prerequisites a and c are direct, and b is an ancestor by c."""
    lengths = {
        scope: {len(ids[0]) for task, ids, _ in observed(f"taskset.scope={scope}").prompts if task == "d"}
        for scope in ("direct", "ancestors")
    }
    assert {more - 3 for more in lengths["ancestors"]} == lengths["direct"]  # "b", its answer and a comma


def test_every_step_drops_other_inputs(observed):
    """One item, and weights that stay: the gradients of a task's steps differ by their masks alone."""
    still = ("training.learning_rate=1e-30", "taskset.train_items=1", "training.batch_size=1")
    a_first, _, a_second, _ = observed(*still).gradients[:4]
    assert torch.allclose(a_first, a_second)
    a_first, _, a_second, _ = observed(*still, "method.dropout=0.3").gradients[:4]
    assert not torch.allclose(a_first, a_second)
