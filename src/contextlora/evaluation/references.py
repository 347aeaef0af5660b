"""References that need no adapter of the task: what a method must beat, and the useful ceiling.

majority               the answer word most frequent in the train split, among the item's options
single prerequisite    the most frequent answer word given one prerequisite's right answer: a child that this solves
                       needs no graph
symbolic composition   the most frequent answer word given all prerequisites' answers, where the roots' answers are the
                       model's predictions and every other task's answer comes from this rule: the useful ceiling
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

from contextlora.tasks.task import Item
from contextlora.tasks.taskset import TaskSet

Rule = dict[tuple[str | None, ...], Counter[str]]


def learn_rule(items: Sequence[Item], prerequisites: Sequence[str]) -> Rule:
    """Frequencies of the answer words for each tuple of right prerequisite answers; the key () holds all items."""
    rule: Rule = defaultdict(Counter)
    for item in items:
        rule[tuple(item.prerequisites.get(name) for name in prerequisites)][item.answer_word] += 1
        if prerequisites:  # without any, the item stands under () already
            rule[()][item.answer_word] += 1
    return rule


def apply_rule(rule: Rule, answers: tuple[str | None, ...], options: Sequence[str]) -> str:
    """Most frequent word among the options; for a tuple never seen, the most frequent one over all."""
    counts = rule.get(answers) or rule[()]
    return max(options, key=lambda word: counts[word])


def rule_accuracy(taskset: TaskSet, task: str, prerequisites: Sequence[str], items: Sequence[Item]) -> float:
    """Accuracy of the rule learned on the train split, given the right answers of these prerequisites."""
    rule = learn_rule(taskset.items(task, "train"), prerequisites)
    right = [
        apply_rule(rule, tuple(item.prerequisites.get(name) for name in prerequisites), item.options)
        == item.answer_word
        for item in items
    ]
    return sum(right) / len(right) if right else 0.0


def symbolic_accuracy(
    taskset: TaskSet, task: str, items: Sequence[Item], root_words: Mapping[str, Sequence[str | None]]
) -> float:
    """Accuracy of the rules of all ancestors chained from the predicted root answers.

    Args:
        taskset: gives graph and train split.
        task: the task whose items are answered; a root's accuracy is that of its predicted words.
        items: items of one split.
        root_words: root task -> the predicted word behind each item, None where it builds on no item of the root.
    """
    rules = {
        name: learn_rule(taskset.items(name, "train"), taskset.graph.prerequisites(name))
        for name in (*taskset.graph.prerequisites(task, "ancestors"), task)
    }

    # Or a task below many diamonds would ask for an ancestor's answer once for each path to it.
    @cache
    def word(name: str, row: int, options: tuple[str, ...] | None) -> str | None:
        if name in root_words:
            return root_words[name][row]
        answers = tuple(word(above, row, None) for above in taskset.graph.prerequisites(name))
        # An ancestor may have no item here, hence no options: it chooses among all words of its train split.
        return apply_rule(rules[name], answers, options or list(rules[name][()]))

    right = [word(task, row, item.options) == item.answer_word for row, item in enumerate(items)]
    return sum(right) / len(right) if right else 0.0
