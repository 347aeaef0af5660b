"""Task graph: which task needs which, and the order in which that lets them be trained.

    hazard ---+
              +--> risk ---+
    grip -----+            +--> route        S_1 = (hazard, grip, traffic)   S_2 = (risk,)   S_3 = (route,)
    traffic ---------------+

An edge u -> v says that v needs u: u is a prerequisite of v. A generation S_k holds the tasks whose prerequisites all
lie in S_1 .. S_{k-1}, so the tasks of one generation may be trained together. Paper: arXiv 2507.21199, Eq. (2)-(4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from contextlora.errors import UserError, known, squeezed
from contextlora.limits import shown

if TYPE_CHECKING:
    import networkx as nx  # otherwise where it is used, as it takes a third of the time of --help

# A task names folders, tensors and configuration keys: no separator of any of these may occur in it.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class GraphError(UserError):
    """A task graph, or a plan made from one, that cannot be trained as written."""


class TaskGraph:
    """A directed acyclic graph of tasks, sorted into generations.

    Args:
        prerequisites: task -> its direct prerequisites, as a mapping or (like `dict`) as pairs; the order of
            declaration breaks ties in every order below.

    Attributes:
        tasks: every task in topological order: by generation, then by declaration.
        generations: S_1 .. S_l of Eq. (2)-(4).
        edges: (u, v) for "v needs u", by v and then u in topological order.

    Raises:
        GraphError: for an empty graph, an unusable name, a duplicate, an unknown prerequisite, a self-loop or a cycle.
    """

    def __init__(self, prerequisites: Mapping[str, Sequence[str]] | Iterable[tuple[str, Sequence[str]]]):
        import networkx as nx

        declared = _checked(prerequisites)
        graph = nx.DiGraph()
        graph.add_nodes_from(declared)
        graph.add_edges_from((needed, task) for task, direct in declared.items() for needed in direct)
        self.generations = _generations(graph)
        self.tasks = tuple(task for generation in self.generations for task in generation)
        self._graph = graph
        self._position = {task: position for position, task in enumerate(self.tasks)}
        self._direct = {task: self._sorted(declared[task]) for task in self.tasks}
        self._ancestors: dict[str, tuple[str, ...]] = {}  # once asked for: all those of a long chain are many
        self.edges = tuple((needed, task) for task, direct in self._direct.items() for needed in direct)

    def prerequisites(self, task: str, scope: Literal["direct", "ancestors"] = "direct") -> tuple[str, ...]:
        """P(v) in topological order: the direct prerequisites, or with scope "ancestors" theirs too, and so on.

        Raises:
            GraphError: for a task that is not in the graph, or another scope.
        """
        if task not in self._direct:
            raise GraphError(f"unknown task {task!r}{known(task, self.tasks)}")
        if scope == "direct":
            return self._direct[task]
        if scope != "ancestors":
            raise GraphError(f"scope must be 'direct' or 'ancestors', got {shown(scope)}")
        if task not in self._ancestors:
            import networkx as nx

            self._ancestors[task] = self._sorted(nx.ancestors(self._graph, task))
        return self._ancestors[task]

    def _sorted(self, tasks: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(tasks, key=self._position.__getitem__))

    def __repr__(self) -> str:
        return f"TaskGraph({self._direct})"


def _checked(prerequisites: Mapping | Iterable) -> dict[str, tuple[str, ...]]:
    """The declaration as a dict, every rule but acyclicity checked."""
    pairs = prerequisites.items() if isinstance(prerequisites, Mapping) else prerequisites
    direct: dict[str, tuple[str, ...]] = {}
    for task, needed in pairs:
        if task in direct:
            raise GraphError(f"task {task!r} is declared twice: give each task one entry")
        # A word is iterable too, letter by letter.
        if isinstance(needed, str) or not isinstance(needed, Iterable):
            wrong = shown(needed)
            raise GraphError(
                f"the prerequisites of {task!r} are a list of tasks, got {wrong}: write [{squeezed(str(needed))}]"
            )
        direct[task] = tuple(needed)
    if not direct:
        raise GraphError("the task graph is empty: declare at least one task")
    for task, needed in direct.items():
        for fault in declaration_faults(task, needed, direct):
            raise GraphError(fault)
    return direct


def declaration_faults(task: str, needed: Sequence[str], names: Mapping) -> Iterator[str]:
    """Every rule that one task's declaration breaks; `names` holds all tasks."""
    if not isinstance(task, str) or not _NAME.fullmatch(task):
        yield f"a task's name must be made of letters, digits, '_' and '-', got {shown(task)}"
    if task in needed:
        yield f"task {task!r} is its own prerequisite: remove it from its list"
    for name in needed:
        if name not in names:
            yield f"task {task!r} needs unknown task {name!r}{known(name, names)}"
    if len(set(needed)) != len(needed):
        twice = next(name for name in needed if needed.count(name) > 1)
        yield f"task {task!r} lists prerequisite {twice!r} twice: keep one"


def _generations(graph: nx.DiGraph) -> tuple[tuple[str, ...], ...]:
    """Eq. (2)-(4), each generation in the order of declaration, which is that of the graph's nodes."""
    import networkx as nx

    declared = {task: position for position, task in enumerate(graph)}
    try:
        return tuple(tuple(sorted(g, key=declared.__getitem__)) for g in nx.topological_generations(graph))
    except nx.NetworkXUnfeasible:
        edges = nx.find_cycle(graph)
    # Raised outside of the handler, or a traceback would show networkx's error as well.
    cycle = " -> ".join([edges[0][0], *(task for _, task in edges)])  # each needs the one before it
    raise GraphError(f"the task graph has a cycle, {cycle}: remove one of these edges")
