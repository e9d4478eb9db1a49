"""Spanning trees against enumeration of all trees, and against networkx on larger graphs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bistil.tasks.parsing.trees import spanning_tree


def all_trees(words):
    """Every single-rooted tree over so many words, as tuples of heads."""
    for heads in itertools.product(range(words + 1), repeat=words):
        if heads.count(0) != 1:
            continue
        for word in range(1, words + 1):
            steps = 0
            while word and steps <= words:
                word, steps = heads[word - 1], steps + 1
            if word:
                break
        else:
            yield heads


TREES = {words: list(all_trees(words)) for words in range(1, 6)}


def test_number_of_trees():
    """n words have n^(n-1) single-rooted trees (Cayley)."""
    assert {words: len(trees) for words, trees in TREES.items()} == {n: n ** (n - 1) for n in range(1, 6)}


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_best_tree_by_brute_force(data):
    """Small whole numbers give many ties, cycles and competing roots: the sum must be the best one."""
    words = data.draw(st.integers(1, 5))
    scores = data.draw(arrays(np.float32, (words, words + 1), elements=st.integers(-6, 6).map(float)))
    tree = tuple(spanning_tree(scores.copy()).tolist())
    assert tree in TREES[words]
    total = [sum(scores[d, h] for d, h in enumerate(heads)) for heads in TREES[words]]
    assert sum(scores[d, h] for d, h in enumerate(tree)) == max(total)


@pytest.mark.parametrize("seed", range(5))
def test_longer_sentences_against_networkx(seed):
    networkx = pytest.importorskip("networkx")
    scores = np.random.default_rng(seed).normal(size=(40, 41))
    # A handicap on root arcs makes networkx's tree single-rooted too.
    graph = networkx.DiGraph()
    graph.add_weighted_edges_from(
        (head, word + 1, scores[word, head] - 1000 * (head == 0))
        for word in range(40)
        for head in range(41)
        if head != word + 1
    )
    best = networkx.maximum_spanning_arborescence(graph)
    assert spanning_tree(scores).tolist() == [next(best.predecessors(word + 1)) for word in range(40)]


def test_one_root_even_where_the_root_attracts_all():
    scores = np.zeros((6, 7), dtype=np.float32)
    scores[:, 0] = 1e6
    assert (spanning_tree(scores) == 0).sum() == 1


def test_nested_cycles_of_a_long_sentence():
    """Neighbours that point at each other, pairs of pairs that do, and so on, over 512 words."""
    words = 512
    scores = np.zeros((words, words + 1))
    for level in range(9):
        span = 2**level
        for word in range(words):
            other = (word // (2 * span)) * 2 * span + ((word // span) % 2 == 0) * span
            scores[word, other + 1] = max(scores[word, other + 1], 10.0 - level)
    tree = spanning_tree(scores)
    above = np.concatenate([[0], tree])
    for _ in range(10):
        above = above[above]
    assert not above.any() and (tree == 0).sum() == 1


def test_no_words():
    assert spanning_tree(np.zeros((0, 1))).shape == (0,)
