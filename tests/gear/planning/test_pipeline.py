"""Cuts against every possible cutting."""

import itertools
import random

import pytest

from contextlora.gear.planning.pipeline import StageTimes, best_cuts, chain_s, pipeline_s


def every_cutting(num_stages, num_layers):
    return itertools.combinations(range(1, num_layers), num_stages - 1)


def layers_of(cuts, num_layers):
    edges = (0, *cuts, num_layers)
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def test_the_best_cutting_is_found_for_every_layout_and_chain():
    rng = random.Random(1)
    for _ in range(60):
        num_stages, num_layers, num_micro = rng.randint(2, 3), rng.randint(3, 6), rng.randint(1, 6)
        speed = [rng.uniform(0.5, 3) for _ in range(num_stages)]
        weight = [rng.uniform(0.5, 2) for _ in range(num_layers)]
        link = rng.choice((0.0, 0.7))

        def times_of(stage, layers, speed=speed, weight=weight, link=link):
            work = sum(weight[layer] for layer in layers) / speed[stage]
            return StageTimes(work + link, 1.3 * work + link * stage, work)

        found = best_cuts(times_of, num_stages, num_layers, num_micro)
        for layout, passes in itertools.product(("1f1b", "gpipe"), (0, 2)):

            def total(cuts, layout=layout, passes=passes, times_of=times_of, m=num_micro, layers=num_layers):
                times = [times_of(stage, part) for stage, part in enumerate(layers_of(cuts, layers))]
                return pipeline_s(times, m, layout) + chain_s(times, passes, m)

            best = min(map(total, every_cutting(num_stages, num_layers)))
            assert min(map(total, found)) == pytest.approx(best)


def test_layers_that_do_not_fit_are_avoided():
    def times_of(stage, layers):
        return None if stage == 0 and len(layers) > 1 else StageTimes(len(layers), len(layers), len(layers))

    assert best_cuts(times_of, 2, 4, 4) == [(1,)]
    assert best_cuts(lambda stage, layers: None, 2, 4, 4) == []


def test_a_pass_waits_for_the_one_before():
    times = [StageTimes(0, 0, 1.0)] * 3
    # one micro-batch: each of 2 passes takes all 3 stages
    assert chain_s(times, 2, 1) == 6
    # 5 micro-batches: the last one enters after 4 s and takes 3 s
    assert chain_s(times, 2, 5) == 2 * 7
    assert chain_s(times, 0, 5) == 0
