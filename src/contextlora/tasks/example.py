"""A small task set to start one's own from: it trains at once, and explains each of its keys."""

import json
import random
import shutil
from pathlib import Path

from contextlora.files import replace_folder, slug

SCHEMAS = Path(__file__).parent / "schema"  # of taskset.yaml and of an item's line
_DESCRIPTION = """\
# yaml-language-server: $schema=taskset.schema.json
# A task set is a folder: this file, and <split>/<task>.jsonl with an item a line; splits: train, validation, test.
#   make data-check TASKSET={folder}
#   make train TASKSET={folder}

# In tables, folders of runs and tracked runs.
name: {name}

# What a model reads; {{image}} and {{context}} are left out where an item has none. Without one it is, for most models:
# template: "{{image}} {{context}} {{question}}\\nOptions:\\n{{option_lines}}\\nAnswer:"
# And how the answers of prerequisites are told in {{context}}; both may also stand in a task:
# as_context: "The {{task}} is {{answer}}."

# Whatever is your own, of any form; nothing reads it. Tasks and items may have it too.
# metadata: {{source: made up}}

tasks:
  state:
    # Tasks whose answers this one needs; none for a root.
    prerequisites: []
    # The most options that an item has.
    num_options: 2
    # What is asked, in one sentence; for people.
    description: whether the temperature is above its limit
  action:
    prerequisites: [state]
    num_options: 2
    description: what to do with the machine
    # The prerequisites whose answers stand in its prompts; all unless given.
    # context: [state]
    # The right answer for each case of the prerequisites' answers, where there is such a rule; for `make data-check`.
    # rule: [[hot, stop], [normal, run]]

# An item, in one line:
#   id              text or a whole number, unique in its file
#   scene           items of several tasks with one scene belong together; no scene may be in two splits
#   question        all that the prompt says besides image, context and options
#   options         what to choose from, in the order shown; items may differ in how many they have
#   answer          the place of the right option, from 0
# and, where they are wanted:
#   image           a file in this folder
#   image_text      what a model that cannot see reads instead
#   prerequisites   right answers of the tasks that it needs, as words; else those of their items of the same scene
#   parents         where the scene has several items of a task that it needs: which one, as {{"state": id}}
#   fields          named inputs behind the question; for `make data-check`, never shown to a model
#   metadata        whatever is your own; nothing reads it
"""
_NUM_SCENES = {"train": 200, "validation": 50, "test": 50}


def write_example(folder: Path) -> None:
    """Writes the task set into `folder`, named after it."""
    with replace_folder(folder) as unfinished:
        text = _DESCRIPTION.format(name=json.dumps(slug(folder.name), ensure_ascii=False), folder=folder)
        (unfinished / "taskset.yaml").write_text(text, encoding="utf-8")
        for path in SCHEMAS.iterdir():  # copies: a folder that is passed on keeps them
            shutil.copyfile(path, unfinished / path.name)
        for split, count in _NUM_SCENES.items():
            (unfinished / split).mkdir()
            scenes = [_scene(f"{split}-{number}") for number in range(count)]
            for task in ("state", "action"):
                lines = "".join(json.dumps(items[task]) + "\n" for items in scenes)
                (unfinished / split / f"{task}.jsonl").write_text(lines, encoding="utf-8")


def _scene(name: str) -> dict[str, dict[str, object]]:
    """An item of each task: the state follows from two numbers, the action from the state by a rule in the prompt."""
    rng = random.Random(name)
    limit, distance, is_hot = rng.randrange(30, 70), rng.randrange(5, 30), rng.random() < 0.5
    states, actions = rng.sample(["hot", "normal"], 2), rng.sample(["stop", "run"], 2)
    hot_action = rng.choice(actions)
    other_action = next(word for word in actions if word != hot_action)
    return {
        "state": {
            "id": name,
            "scene": name,
            "question": f"temperature {limit + (distance if is_hot else -distance)} , limit {limit} . state ?",
            "options": states,
            "answer": states.index("hot" if is_hot else "normal"),
        },
        "action": {
            "id": name,
            "scene": name,
            "question": f"rule hot {hot_action} , normal {other_action} . action ?",
            "options": actions,
            "answer": actions.index(hot_action if is_hot else other_action),
        },
    }
