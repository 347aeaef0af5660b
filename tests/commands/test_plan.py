"""`contextlora plan`: what it prints and writes, that it needs no weights, and how tokens are counted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from contextlora.assembly import workloads
from contextlora.backbones.size import model_size
from contextlora.cli import main
from contextlora.commands.plan import plan
from contextlora.errors import UserError
from contextlora.gear.reports import timeline
from contextlora.tasks.taskset import TaskSet

ROOT = Path(__file__).parents[2]
CATALOGUE = """\
devices:
  first: {flops_per_s: 1.0e6, memory_bytes: 1.0e8}
  second: {flops_per_s: 1.0e6, memory_bytes: 1.0e8}
link: {bandwidth_bits_per_s: 1.0e4, latency_s: 0.001}
"""


@pytest.fixture
def arguments(taskset_folder, model_folder, tmp_path):
    """A plan of the tiny task set on two devices whose link is too slow for gradients."""
    (tmp_path / "pair.yaml").write_text(CATALOGUE)
    given = (f"taskset={taskset_folder}", f"model={model_folder}", f"runs_dir={tmp_path / 'runs'}")
    return [*given, f"gear.devices={tmp_path / 'pair.yaml'}", "training.batch_size=4", "training.steps_per_task=20"]


def test_plan_prints_the_choice_and_its_reasons_and_writes_picture_and_json(arguments, tmp_path, capsys):
    assert main(["plan", *arguments]) == 0
    printed = capsys.readouterr().out
    for text in ("contextgear", "one device", "data parallel", "pipeline gpipe", "slower by", "chosen", "idle", "0F3"):
        assert text in printed, text
    picture = tmp_path / "runs/plans/tiny-pair.png"
    assert str(os.path.relpath(picture)) in printed
    assert Image.open(picture).width > 1000
    tree = json.loads(picture.with_suffix(".json").read_text())
    # a and b are roots; c joins them; d needs a and c, so its chain is a, b, c
    assert [[(t["task"], t["num_prerequisites"]) for t in stage["tasks"]] for stage in tree["stages"]] == [
        [("a", 0), ("b", 0)],
        [("c", 2)],
        [("d", 3)],
    ]
    assert tree["stages"][2]["candidates"][0]["strategy"] == "contextgear"


@pytest.mark.parametrize("name", ["two words", ".hidden"])
def test_a_plan_is_written_below_the_runs_whatever_the_task_set_calls_itself(arguments, taskset_folder, tmp_path, name):
    folder = shutil.copytree(taskset_folder, tmp_path / "foreign")
    file = folder / "taskset.yaml"
    file.write_text(file.read_text().replace("name: tiny", f"name: {name}"))
    before = {*tmp_path.rglob("*")}
    assert main(["plan", *arguments, f"taskset={folder}"]) == 0
    written = {path for path in {*tmp_path.rglob("*")} - before if path.is_file()}
    assert {path.parent for path in written} == {tmp_path / "runs/plans"}
    assert {path.suffix for path in written} == {".json", ".png"}


@pytest.fixture
def drawings(monkeypatch):
    """Collects what the time line is asked to draw: the stages, and those left out."""
    found = []

    def timeline_figure(stages, left_out):
        found.append((stages, left_out))
        return Figure()

    monkeypatch.setattr(timeline, "timeline_figure", timeline_figure)
    return found


def test_the_picture_begins_with_passes_that_run_ahead_and_the_tables_fit_their_lines(arguments, drawings, capsys):
    assert main(["plan", *arguments]) == 0
    ((drawn, left_out),) = drawings
    assert drawn[0][0].best.strategy == "contextgear"
    assert all({"P", "R"} & {i.action.kind for i in simulation.intervals} for _, simulation in drawn)
    assert [stage.stage for stage in left_out] == ["stage 1"]  # roots a and b
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert any("sent" in line and "slower by" in line for line in printed.splitlines())


def test_a_picture_of_stages_without_passes_shows_them_all(arguments, drawings):
    assert main(["plan", *arguments, "gear.context=taskset", "taskset.context=gold"]) == 0
    ((drawn, left_out),) = drawings
    assert len(drawn) == 3 and left_out == []


def test_a_mistake_in_the_devices_shows_before_torch_is_loaded(arguments):
    code = "import sys; from contextlora.cli import main\nassert main(['plan', *sys.argv[1:]]) == 2\n"
    code += "assert not {'torch', 'lightning', 'transformers', 'peft', 'wandb'} & set(sys.modules)\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, *arguments, "gear.devices=nowhere"]
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def test_a_plan_reads_no_weights(arguments, model_folder, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_text((model_folder / "config.json").read_text())
    assert main(["plan", *arguments, f"model={tmp_path / 'bare'}"]) == 0
    assert "parameters" in capsys.readouterr().out


def test_with_the_right_answers_in_the_prompts_there_is_nothing_to_run_ahead(arguments, capsys):
    assert main(["plan", *arguments, "gear.context=taskset", "taskset.context=gold"]) == 0
    assert "contextgear" not in capsys.readouterr().out
    assert main(["plan", *arguments, "taskset.context=gold"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "contextgear" in printed
    assert "your training uses taskset.context=gold" in printed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("gear.devices=nowhere", "unknown devices 'nowhere'"),
        ("model=../nowhere", "plan needs the config.json of model ../nowhere"),
        ("model=no-such-owner/no-such-model", "plan needs the config.json of model no-such-owner/no-such-model"),
        ("taskset=../nowhere", "../nowhere"),
        ("training.batch_size=0", "training.batch_size must be at least 1"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(arguments, capsys, changed, said):
    assert main(["plan", *arguments, changed]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_too_little_memory_is_a_mistake_that_the_user_can_mend(arguments, tmp_path, capsys):
    (tmp_path / "pair.yaml").write_text(CATALOGUE.replace("1.0e8", "1.0e3"))
    assert main(["plan", *arguments]) == 2
    assert "does not fit: first needs" in capsys.readouterr().err


def test_tokens_are_counted_with_the_tokenizer_or_estimated_from_words(
    make_config, taskset_folder, model_folder, tmp_path
):
    config, taskset = make_config(), TaskSet.load(taskset_folder)
    (_, _, stage), notes = workloads.stage_workloads(config, taskset)
    # `sees p q . d ? given : a red , c blue . options : red , blue , green . answer :` has 6 + 8 + 8 + 2 words
    assert "counted with tokenizer.json" in notes[0] and "a 16, b 16, c 24, d 24" in notes[0]
    assert stage.tasks[0].boundary_bytes == 24 * 32 * 4  # 24 tokens; h = 32 of the tiny model in float32
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((model_folder / "config.json").read_text())
    config.model.name = str(bare)
    _, notes = workloads.stage_workloads(config, taskset)
    # `The a is red. The c is blue. sees p q . d ? Options: - red - blue - green Answer:` has 22
    assert "estimated at 1.33 a word" in notes[0] and "d 29" in notes[0]
    (bare / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(UserError, match=r"bare/tokenizer\.json is no tokenizer \(EOF while parsing"):
        workloads.stage_workloads(config, taskset)


def test_a_hub_model_is_found_in_the_local_cache(arguments, model_folder, tmp_path, monkeypatch, capsys):
    snapshot = tmp_path / "hub" / "models--owner--small" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text((model_folder / "config.json").read_text())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["plan", *arguments, "model=owner/small"]) == 0
    assert "model: owner/small" in capsys.readouterr().out


def test_the_bundled_model_counts_the_patches_of_an_image(tmp_path, make_config):
    config = make_config("taskset=iov", "model=bundled", f"taskset.data_dir={tmp_path}")
    found = workloads.count_tokens
    size = model_size(workloads.BUNDLED)
    taskset = _one_image_item(tmp_path)
    with_image, _ = found(config, taskset, size, "image", "none", workloads.BUNDLED)
    as_text, _ = found(config, taskset, size, "text", "none", workloads.BUNDLED)
    # the image's text view is one word
    assert with_image["see"] - as_text["see"] == size.vision.num_image_tokens - 1


def _one_image_item(folder):
    from contextlora.tasks.task import Item, Task
    from contextlora.tasks.taskset import write_taskset

    Image.new("RGB", (2, 2)).save(folder / "x.png")
    items = [Item(f"{s}", s, "lane ?", ("dry", "damp"), 0, image="x.png", image_text="dry") for s in "pqr"]
    splits = dict(zip(("train", "validation", "test"), items, strict=True))
    write_taskset(folder, "one", [Task("see", (), 2)], {("see", split): [item] for split, item in splits.items()})
    return TaskSet.load(folder)


def test_every_shipped_catalogue_plans_the_tiny_set(make_config, taskset_folder, tmp_path, capsys):
    for name in ("laptops2", "jetson4", "server1-boards3"):
        made = plan(make_config(f"gear.devices={name}"))
        assert made.fleet == name and isinstance(made.seconds, float)


def test_a_model_that_cannot_be_built_is_one_line(arguments, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert main(["plan", *arguments, f"model={tmp_path}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "config.json: transformers cannot build a language model from it" in error
