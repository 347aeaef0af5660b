from dataclasses import replace
from itertools import pairwise
from unittest.mock import Mock

import lightning
import pytest
import torch

from contextlora.backbones.encoding import OptionBatch
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.task import TaskSetError, item_key
from contextlora.tasks.taskset import TaskSet


class Reader:
    """A backbone that reads nothing."""

    is_multimodal = reads_sentences = False

    def __init__(self, make_batch):
        self.make_batch = make_batch

    def encode(self, prompts, rows=None):
        return self.make_batch(prompts if rows is None else prompts[rows.start : rows.stop])


@pytest.fixture
def make(folder):
    """Data modules whose batches are the rendered prompts themselves, unless another `encode` is given."""

    def build(encode=list, **settings):
        settings = {"batch_size": 2, "eval_batch_size": 2, "seed": 0, "context": "none", **settings}
        return TaskSetDataModule(TaskSet.load(folder), Reader(encode), **settings)

    return build


def train_texts(module, stage, first_step, num_steps, tasks=("a", "b")):
    module.set_interval(stage, tasks, first_step, num_steps)
    return [[prompt.text for prompt in batch] for batch in module.train_dataloader()]


def test_tasks_of_a_stage_take_turns(make):
    module = make()
    module.set_interval(0, ("a", "b"), 0, 6)
    tasks = [{prompt.task for prompt in batch} for batch in module.train_dataloader()]
    assert tasks == [{"a"}, {"b"}] * 3


def test_every_item_is_seen_once_a_round_in_changing_order(make):
    texts = [text for batch in train_texts(make(), 0, 0, 30, tasks=("a",)) for text in batch]
    rounds = [texts[start : start + 3] for start in range(0, 60, 3)]
    assert all(len(set(seen)) == 3 for seen in rounds)
    assert sum(first != second for first, second in pairwise(rounds)) > 10


def test_order_depends_on_seed_stage_and_step_alone(make):
    whole = train_texts(make(), 0, 0, 20)
    resumed = make()
    assert train_texts(resumed, 0, 13, 7) == whole[13:]
    assert train_texts(resumed, 0, 0, 13) == whole[:13]
    assert train_texts(make(), 1, 0, 20) != whole
    assert train_texts(make(seed=1), 0, 0, 20) != whole


def test_validation_goes_through_all_items_of_the_stage(make):
    module = make()
    for stage, task in enumerate("ab"):
        module.set_interval(stage, (task,), 0, 0)
        batches = list(module.val_dataloader())
        assert [len(batch) for batch in batches] == [2, 1]
        assert [prompt.task for batch in batches for prompt in batch] == [task] * 3


def test_context(make):
    module = make(context="gold")  # right answers too come from the module that trains
    rows = module.taskset.items("b", "train")
    module.set_answers({item_key("b", item): dict(item.prerequisites) for item in rows})
    texts = [text for batch in train_texts(module, 0, 1, 3) for text in batch if "b ?" in text]
    assert texts and all("given : a " in text for text in texts)
    module = make(context="predicted")
    with pytest.raises(TaskSetError, match="needs an answer of task a"):
        train_texts(module, 0, 0, 2)
    module.set_answers({item_key("b", item): {"a": "green"} for item in rows})
    assert all("given : a green ." in text for text in train_texts(module, 0, 1, 1)[0])
    assert not any("given" in text for batch in train_texts(make(), 0, 0, 6) for text in batch)
    with pytest.raises(TaskSetError, match="context must be one of none, gold, predicted, got 'golden'"):
        make(context="golden")


def test_encode_items_renders_with_the_settings(make):
    module = make(image="text", answer_format="letter")
    prompt = module.encode_items("a", module.taskset.items("a", "test")[1:2], None)[0]
    assert prompt.text == ("camera : empty . colour 1 in test . a ? options : a red , b green , c blue . answer :")


def test_a_model_that_reads_sentences_gets_them_unless_the_set_has_its_own_words(folder):
    reader = Reader(list)
    reader.reads_sentences = True
    module = TaskSetDataModule(TaskSet.load(folder), reader, answer_format="letter")
    item = module.taskset.items("b", "test")[0]
    expected = "The a is red. colour 0 in test . b ?\nOptions:\nA. red\nB. green\nC. blue\nAnswer:"
    assert module.prompt("b", item, {"a": "red"}).text == expected
    own = replace(TaskSet.load(folder), template="{image}{question}? {context} {options}", as_context="a={answer}")
    module = TaskSetDataModule(own, reader)
    assert module.prompt("b", item, {"a": "red"}).text == "colour 0 in test . b ?? a=red red , green , blue"


def test_a_template_of_a_task_must_show_all_too(folder):
    taskset = TaskSet.load(folder)
    tasks = {**taskset.tasks, "b": replace(taskset.tasks["b"], template="{image} {question} {options}")}
    with pytest.raises(TaskSetError, match=r"prompt template of task b has no \{context\}, which context gold needs"):
        TaskSetDataModule(replace(taskset, tasks=tasks), Reader(list), context="gold")
    assert TaskSetDataModule(replace(taskset, tasks=tasks), Reader(list), context="none")


def test_devices_share_a_batch(make):
    class Trainer:
        world_size = 2

        def __init__(self, rank):
            self.global_rank = rank

    whole = train_texts(make(batch_size=5), 0, 0, 4)
    shares = []
    for rank in range(2):
        module = make(batch_size=5)
        module.trainer = Trainer(rank)
        shares.append(train_texts(module, 0, 0, 4))
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]
    module = make(batch_size=1)
    module.trainer = Trainer(0)
    # A row that one device reads for nothing: an empty batch would fit no model.
    assert train_texts(module, 0, 0, 3) == train_texts(make(batch_size=1), 0, 0, 3)
    assert (len(module.own_rows(1)), list(make(batch_size=1).own_rows(1))) == (0, [0])


def test_batch_size_must_be_positive(make):
    with pytest.raises(TaskSetError, match="at least 1, got 0 and 2"):
        make(batch_size=0)


class Recorder(lightning.LightningModule):
    """Changes the interval at the start of the fit and of each epoch; notes which tasks come."""

    def __init__(self, intervals):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.intervals, self.trained, self.validated = intervals, [], []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_fit_start(self):
        self.on_train_epoch_start()

    def on_train_epoch_start(self):
        self.trainer.datamodule.set_interval(*self.intervals[self.current_epoch])

    def training_step(self, batch, batch_idx):
        self.trained.append((self.current_epoch, batch.task))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append((self.current_epoch, batch.task))


def as_batch(prompts):
    ids = torch.zeros(len(prompts), 3, 1, dtype=torch.long)
    return OptionBatch(
        {}, ids, ids == 0, torch.tensor([p.answer for p in prompts]), prompts[0].task, range(len(ids)), len(ids)
    )


def test_a_trainer_follows_the_intervals_without_reloading(make, tmp_path):
    recorder = Recorder([(0, "ab", 0, 3), (0, "ab", 3, 1), (1, "b", 0, 2)])
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(recorder, datamodule=make(encode=as_batch))
    assert recorder.trained == [(0, "a"), (0, "b"), (0, "a"), (1, "b"), (2, "b"), (2, "b")]
    assert recorder.validated == [(epoch, task) for epoch in (0, 1) for task in "aabb"] + [(2, "b")] * 2


@pytest.mark.parametrize(
    ("template", "context", "said"),
    [
        ("{image} {question} {options}", "predicted", r"no \{context\}, which context predicted needs; put it in"),
        ("{image} {question} {options}", "gold", r"no \{context\}, which context gold needs"),
        ("{question} {context} {options}", "none", r"no \{image\}, but items have images; put it in"),
        ("{image} {question} {options}", "none", None),
    ],
)
def test_a_template_shows_all_that_prompts_have(folder, template, context, said):
    taskset = replace(TaskSet.load(folder), template=template)
    if said is None:
        assert TaskSetDataModule(taskset, Mock(is_multimodal=True, reads_sentences=False), context=context)
        return
    with pytest.raises(TaskSetError, match=said):
        TaskSetDataModule(taskset, Mock(is_multimodal=True, reads_sentences=False), context=context)
