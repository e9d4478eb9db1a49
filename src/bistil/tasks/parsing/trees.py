"""Maximum spanning trees with a single root (Chu & Liu 1965, Edmonds 1967), in time quadratic in the words."""

import numpy as np


def spanning_tree(scores: np.ndarray) -> np.ndarray:
    """The tree with the highest sum of arc scores in which exactly one word hangs on the root.

    Cycles are contracted along growing paths (Camerini et al. 1979); the single root comes from a penalty on root
    arcs that outweighs everything else (Zmigrod et al. 2020, section 3).

    Args:
        scores: (words, words + 1); entry [d, h] is the score of word h (from 1; 0 is the root) as head of word d + 1.

    Returns:
        (words,) int64 heads, 0 for the root's child.
    """
    words = len(scores)
    scores = scores.astype(np.float64)
    scores[np.arange(words), np.arange(1, words + 1)] = -np.inf
    heads = scores.argmax(axis=1)
    if words == 0 or _is_single_rooted(heads):
        return np.array(heads, dtype=np.int64)
    finite = scores[np.isfinite(scores)]
    # Two trees differ by at most words times the range; one root arc more must cost more than that.
    penalty = 1.0 + words * (finite.max() - finite.min())
    scores[:, 0] -= penalty
    return _arborescence(scores)


def _is_single_rooted(heads: np.ndarray) -> bool:
    """Whether heads (words,) form a tree with one root: from every word the root is reached."""
    if (heads == 0).sum() != 1:
        return False
    above = np.concatenate([[0], heads])
    # Doubling: after k rounds `above` points 2^k steps up; the root points to itself.
    for _ in range(len(heads).bit_length()):
        above = above[above]
    return not above.any()


def _arborescence(scores: np.ndarray) -> np.ndarray:
    """Best arborescence without a bound on root arcs. `scores` as in `spanning_tree`, self-arcs -inf; overwritten."""
    words = len(scores)
    size = words + 1
    # Nodes: 0 the root, 1..words the words, then contracted cycles. Rows: score of the best arc from each head.
    rows: dict[int, np.ndarray] = {d + 1: scores[d] for d in range(words)}
    # For a contracted node, which word inside the best arc from each head enters; a word enters at itself.
    targets: dict[int, np.ndarray] = {}
    parent: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    arc: dict[int, tuple[int, int]] = {}
    component = np.arange(size)  # of each word: the outermost node that holds it
    members: dict[int, np.ndarray] = {}
    finished = {0}
    newest = words

    for start in range(1, size):
        node = int(component[start])
        if node in finished:
            continue
        path = [node]
        while True:
            head = int(rows[node].argmax())
            arc[node] = (head, int(targets[node][head]) if node in targets else node)
            above = int(component[head])
            if above in finished:
                finished.update(path)
                break
            if above not in path:
                path.append(above)
                node = above
                continue
            cycle = path[path.index(above) :]
            del path[path.index(above) :]
            newest += 1
            best: np.ndarray | None = None
            entering = np.zeros(size, dtype=np.int32)
            for part in cycle:
                parent[part] = newest
                # What taking this arc into the cycle gains over the arc of the cycle that it breaks.
                gain = rows.pop(part)
                gain = gain - gain[arc[part][0]]
                target = targets.pop(part, None)
                entry = np.full(size, part, dtype=np.int32) if target is None else target
                if best is None:
                    best, entering = gain, entry
                else:
                    better = gain > best
                    best, entering = np.where(better, gain, best), np.where(better, entry, entering)
            assert best is not None
            inside = np.concatenate([members.pop(part, np.array([part])) for part in cycle])
            best[inside] = -np.inf
            rows[newest], targets[newest], members[newest], children[newest] = best, entering, inside, cycle
            component[inside] = newest
            node = newest
            path.append(node)

    heads = np.zeros(words, dtype=np.int64)
    pending = [(node, arc[node]) for node in rows]
    while pending:
        node, (head, word) = pending.pop()
        heads[word - 1] = head
        # The arc enters at `word`: every cycle around it, up to `node`, is broken there and keeps its other arcs.
        inner = word
        while inner != node:
            outer = parent[inner]
            pending += [(part, arc[part]) for part in children[outer] if part != inner]
            inner = outer
    return heads
