"""SFTs on linear weights as PEFT's SHiRA adapters: equal outputs, and back."""

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

from bistil.errors import ArtefactError, InputError
from bistil.sparse import SparseDelta, SparseFineTuning, read_shira, write_shira

peft = pytest.importorskip("peft")
# PEFT asks transformers for an attribute under its old name, and builds sparse tensors that torch warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]

HEADS = ("classifier.weight", "classifier.bias")


def classifier():
    return tiny.model(head=AutoModelForSequenceClassification, layers=2, num_labels=3)


def linear_sft(model, *, heads=HEADS, uneven=True):
    generator = torch.Generator().manual_seed(1)
    deltas = {}
    for number, (name, p) in enumerate(model.named_parameters()):
        if ".encoder." not in name or p.ndim != 2:
            continue
        share = 0.02 * (1 + number % 3) if uneven else 0.05
        indices = torch.nonzero(torch.rand(p.numel(), generator=generator) < share).flatten()
        deltas[name] = SparseDelta(indices, 0.5 * torch.randn(len(indices), generator=generator), tuple(p.shape))
    own = dict(model.named_parameters())
    return SparseFineTuning(deltas, {name: torch.randn(own[name].shape, generator=generator) for name in heads})


@pytest.mark.parametrize("heads", [(), HEADS])
def test_equal_outputs_there_and_back(tmp_path, heads):
    model = classifier()
    ids = torch.arange(5, 25).view(2, 10)
    plain = model(ids).logits
    sft = linear_sft(model, heads=heads)
    with sft.applied(model):
        expected = model(ids).logits
    write_shira(sft, model, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(classifier(), str(tmp_path / "adapter")).eval()
    outputs = adapted(ids).logits
    assert (outputs - plain).abs().max() > 1e-3
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)
    again = read_shira(tmp_path / "adapter", model)
    assert {name for name, delta in again.deltas.items() if len(delta.indices)} == sft.deltas.keys()
    for name, delta in sft.deltas.items():
        assert torch.equal(again.deltas[name].indices, delta.indices)
        assert torch.equal(again.deltas[name].values, delta.values)
    assert again.dense.keys() == sft.dense.keys()
    with again.applied(model):
        assert torch.equal(model(ids).logits, expected)


def test_an_adapter_that_peft_trained(tmp_path):
    model = classifier()
    ids = torch.arange(5, 25).view(2, 10)
    config = peft.ShiraConfig(r=2, target_modules=["query", "value"], random_seed=0, init_weights=False)
    adapted = peft.get_peft_model(classifier(), config).eval()
    expected = adapted(ids).logits
    adapted.save_pretrained(tmp_path / "adapter")
    with read_shira(tmp_path / "adapter", model).applied(model):
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-6)


def test_others_say_why_not(tmp_path):
    model = classifier()
    sft = linear_sft(model)
    name = "bert.embeddings.word_embeddings.weight"
    shape = tuple(model.get_input_embeddings().weight.shape)
    embeddings = SparseFineTuning({**sft.deltas, name: SparseDelta(torch.tensor([3]), torch.ones(1), shape)})
    with pytest.raises(InputError, match=r"word_embeddings\.weight, and SHiRA holds weights of linear layers only"):
        write_shira(embeddings, model, tmp_path / "a")
    bias = SparseFineTuning({"bert.pooler.dense.bias": SparseDelta(torch.tensor([3]), torch.ones(1), (32,))})
    with pytest.raises(InputError, match=r"pooler.dense.bias"):
        write_shira(bias, model, tmp_path / "a")
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    dense = {name: SparseDelta(torch.arange(2040), torch.ones(2040), (64, 32))}
    with pytest.raises(InputError, match="r = 22"):
        write_shira(SparseFineTuning(dense), model, tmp_path / "a")
    with pytest.raises(InputError, match="in part"):
        write_shira(linear_sft(model, heads=HEADS[:1]), model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_other_adapters_are_refused(tmp_path):
    lora = peft.get_peft_model(classifier(), peft.LoraConfig(r=2, target_modules=["query"]))
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(ArtefactError, match="LORA"):
        read_shira(tmp_path / "lora", classifier())
