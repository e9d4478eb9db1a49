"""Every loss against a slow version in plain Python loops, over random shapes and masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bistil.distillation import objectives
from bistil.distillation.aligned_attention import AttentionInputs, aligned_attention

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
quick = settings(max_examples=25, deadline=None)


def draw(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_mask(batch, tokens, seed):
    """Real tokens, at least one per example, not always at the front; now and then none is padding."""
    if seed % 4 == 0:
        return None
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, tokens, generator=generator) < 0.6
    mask[torch.arange(batch), torch.randint(tokens, (batch,), generator=generator)] = True
    return mask.long()


def real_tokens(mask, batch, tokens):
    return [[t for t in range(tokens) if mask is None or mask[b, t]] for b in range(batch)]


def softmax(values):
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


@quick
@given(SHAPES, st.integers(0, 10_000))
def test_attention_loss(shape, seed):
    batch, heads, tokens, _ = shape
    student, teacher = (draw((batch, heads, tokens, tokens), seed + i).softmax(-1) for i in (0, 1))
    mask = draw_mask(batch, tokens, seed)
    real = real_tokens(mask, batch, tokens)
    terms = [
        (student[b, h, i, j] - teacher[b, h, i, j]).item() ** 2
        for b in range(batch)
        for h in range(heads)
        for i in real[b]
        for j in real[b]
    ]
    got = objectives.attention_loss(student, teacher, mask)
    assert got.item() == pytest.approx(sum(terms) / len(terms), rel=1e-9, abs=1e-15)


@quick
@given(SHAPES, st.integers(0, 10_000))
def test_hidden_and_cosine_loss(shape, seed):
    batch, _, tokens, width = shape
    student, teacher = (draw((batch, tokens, width), seed + i) for i in (0, 1))
    mask = draw_mask(batch, tokens, seed)
    rows = [(b, t) for b, found in enumerate(real_tokens(mask, batch, tokens)) for t in found]
    squares = [(student[b, t, d] - teacher[b, t, d]).item() ** 2 for b, t in rows for d in range(width)]
    assert objectives.hidden_loss(student, teacher, mask).item() == pytest.approx(sum(squares) / len(squares), rel=1e-9)

    def cosine(b, t):
        x, y = student[b, t].tolist(), teacher[b, t].tolist()
        return sum(i * j for i, j in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))

    distances = [1 - cosine(b, t) for b, t in rows]
    got = objectives.cosine_loss(student, teacher, mask).item()
    assert got == pytest.approx(sum(distances) / len(distances), rel=1e-7, abs=1e-12)


@quick
@given(SHAPES, st.integers(0, 10_000), st.sampled_from([1.0, 2.0, 3.5]))
def test_prediction_loss(shape, seed, temperature):
    batch, _, tokens, classes = shape
    student, teacher = (draw((batch, tokens, classes), seed + i) for i in (0, 1))
    rows = draw_mask(batch, tokens, seed)
    chosen = [(b, t) for b, found in enumerate(real_tokens(rows, batch, tokens)) for t in found]
    terms = []
    for b, t in chosen:
        targets = softmax([v / temperature for v in teacher[b, t].tolist()])
        ours = softmax([v / temperature for v in student[b, t].tolist()])
        terms.append(-sum(p * math.log(q) for p, q in zip(targets, ours, strict=True)))
    got = objectives.prediction_loss(student, teacher, temperature, rows).item()
    assert got == pytest.approx(sum(terms) / len(terms), rel=1e-9, abs=1e-12)


def test_no_row_counts_as_zero():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = objectives.prediction_loss(logits, torch.randn(2, 3), rows=torch.zeros(2))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@quick
@given(SHAPES, st.integers(0, 10_000), st.integers(1, 3))
def test_relation_loss_with_other_width_and_heads(shape, seed, relation_heads):
    batch, _, tokens, width = shape
    student = draw((batch, tokens, width * relation_heads), seed)
    teacher = draw((batch, tokens, (width + 1) * relation_heads), seed + 1)
    mask = draw_mask(batch, tokens, seed)
    real = real_tokens(mask, batch, tokens)

    def relations(vectors, b, head):
        size = vectors.shape[-1] // relation_heads
        part = vectors[b, :, head * size : (head + 1) * size].tolist()
        scores = [
            [sum(x * y for x, y in zip(part[i], part[j], strict=True)) / math.sqrt(size) for j in real[b]]
            for i in real[b]
        ]
        return [softmax(row) for row in scores]

    rows = []
    for b in range(batch):
        for head in range(relation_heads):
            for ours, theirs in zip(relations(student, b, head), relations(teacher, b, head), strict=True):
                rows.append(sum(p * (math.log(p) - math.log(q)) for p, q in zip(theirs, ours, strict=True)))
    got = objectives.relation_loss(student, teacher, relation_heads, mask).item()
    assert got == pytest.approx(sum(rows) / len(rows), rel=1e-7, abs=1e-12)


def test_relation_gradient_is_finite_under_padding():
    student = torch.randn(2, 5, 8, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    objectives.relation_loss(student, torch.randn(2, 5, 12), 4, mask).backward()
    assert torch.isfinite(student.grad).all() and not student.grad[0, 3:].any()


def test_relation_heads_must_divide():
    with pytest.raises(ValueError, match="3 relation heads do not divide the width 8"):
        objectives.relation_loss(torch.randn(1, 2, 8), torch.randn(1, 2, 8), 3)


def masks_for(mask):
    """A key mask as transformers hands it to attention, in its two forms."""
    if mask is None:
        return [None]
    allowed = mask.bool()[:, None, None, :]
    return [allowed, torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -1e30)]


@quick
@given(SHAPES, st.integers(0, 10_000))
def test_aligned_attention_is_attention_and_its_loss(shape, seed):
    """The one-pass version against softmax, product and `attention_loss` written out, with all gradients."""
    batch, heads, tokens, width = shape
    mask = draw_mask(batch, tokens, seed)
    for attend in masks_for(mask):
        tensors = [draw((batch, heads, tokens, width), seed + i).requires_grad_() for i in range(3)]
        teacher = AttentionInputs(
            draw((batch, heads, tokens, width + 1), seed + 3),
            draw((batch, heads, tokens, width + 1), seed + 4),
            attend,
            0.3,
        )
        upstream = draw((batch, heads, tokens, width), seed + 5)

        output, loss = aligned_attention(*tensors, mask=attend, scaling=0.7, teacher=teacher, real=mask)
        got = torch.autograd.grad((output * upstream).sum() + 3 * loss, tensors)

        query, key, value = tensors
        scores = 0.7 * query @ key.transpose(-1, -2)
        their_scores = 0.3 * teacher.query @ teacher.key.transpose(-1, -2)
        if mask is not None:
            hidden = ~mask.bool()[:, None, None, :]
            scores, their_scores = (s.masked_fill(hidden, -torch.inf) for s in (scores, their_scores))
        ours = scores.softmax(-1)
        slow = objectives.attention_loss(ours, their_scores.softmax(-1), mask)
        torch.testing.assert_close(output, ours @ value)
        torch.testing.assert_close(loss, slow)
        expected = torch.autograd.grad((ours @ value * upstream).sum() + 3 * slow, tensors)
        torch.testing.assert_close(got, expected)


def test_aligned_attention_cuts_large_batches_into_equal_results(monkeypatch):
    from bistil.distillation import aligned_attention as module

    def run():
        tensors = [draw((5, 2, 6, 4), i).requires_grad_() for i in range(3)]
        teacher = AttentionInputs(draw((5, 2, 6, 4), 8), draw((5, 2, 6, 4), 9), None, 0.5)
        output, loss = aligned_attention(*tensors, mask=None, scaling=0.5, teacher=teacher)
        return [output, loss, *torch.autograd.grad(output.sum() + loss, tensors)]

    whole = run()
    monkeypatch.setattr(module, "_slices", lambda query: [slice(i, i + 2) for i in range(0, len(query), 2)])
    torch.testing.assert_close(run(), whole)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="must be equal"):
        objectives.hidden_loss(torch.randn(1, 2, 3), torch.randn(1, 2, 4))
    with pytest.raises(ValueError, match="must be equal"):
        objectives.attention_loss(torch.rand(1, 2, 3, 3), torch.rand(1, 4, 3, 3))
