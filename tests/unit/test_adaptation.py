"""Language SFTs: heads, decoupled output embeddings, and a loss that goes down."""

import gc
import math

import pytest
import tiny
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForMaskedLM

from bistil.errors import ArtefactError, InputError
from bistil.models.masked_lm import masked_lm_model
from bistil.settings.recipe import TrainingSettings
from bistil.sparse import SparseFineTuning, fingerprint
from bistil.sparse.language import AdaptSettings, MaskedLanguageModelling, adapt, paper_steps
from bistil.text import IGNORED


@pytest.fixture(autouse=True, scope="module")
def quick_collections():
    """The Trainer collects garbage after every run, which takes long over everything that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def save(folder, family="bert", *, head):
    model = tiny.model(family, head=head, layers=2)
    tiny.save(model, folder, family)
    return model


def settings(**options):
    training = TrainingSettings(steps=1, batch_size=4, learning_rate=5e-2, evaluate_steps=10)
    return AdaptSettings(
        **{"density": 0.1, "steps": 60, "block_length": 24, "held_out": 0.2, "training": training, **options}
    )


def text(tmp_path):
    path = tmp_path / "sw.txt"
    path.write_text(tiny.SWAHILI * 6)
    return [path]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_output_embeddings_are_decoupled_and_frozen(tmp_path, family):
    saved = save(tmp_path / "model", family, head=AutoModelForMaskedLM)
    model, dense = masked_lm_model(str(tmp_path / "model"), seed=0)
    words, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert words is not output and torch.equal(words, output)
    assert words.requires_grad and not output.requires_grad
    # EuroBERT's head is the output matrix alone.
    biases = [] if model.get_output_embeddings().bias is None else [(model.config.vocab_size,)]
    assert [model.get_parameter(name).shape for name in dense] == biases
    ids = torch.arange(5, 25).view(2, 10)
    assert torch.equal(model(ids).logits, saved(ids).logits)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_loss_at_masked_positions_is_that_of_the_whole_output(tmp_path, family):
    save(tmp_path / "model", family, head=AutoModelForMaskedLM)
    model, _ = masked_lm_model(str(tmp_path / "model"), seed=0)
    ids = torch.randint(5, 100, (3, 12))
    labels = torch.where(torch.rand(3, 12) < 0.3, ids, torch.tensor(IGNORED))
    labels[0, 0] = 7
    loss = MaskedLanguageModelling(model)(input_ids=ids, labels=labels)["loss"]
    torch.testing.assert_close(loss, model(ids, labels=labels).loss)


@pytest.mark.parametrize("head", [AutoModel, AutoModelForMaskedLM])
def test_adapting_lowers_the_held_out_loss(tmp_path, head):
    base = save(tmp_path / "model", head=head)
    sft = adapt(
        str(tmp_path / "model"),
        text(tmp_path),
        tmp_path / "sft",
        language="sw",
        settings=settings(),
        work=tmp_path / "work",
        seed=1,
    )
    metrics = sft.provenance.metrics
    before, after = (metrics[f"held-out masked-LM loss {when}"] for when in ("before", "after"))
    if head is AutoModel:
        # A new head starts from the frequencies of the tokens, well below a uniform guess.
        assert before < math.log(base.config.vocab_size) - 0.2 and after < before + 0.1
    else:
        assert after < before - 0.1
    assert sft.provenance.fingerprint == fingerprint(base)
    new_head = {
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
    }
    assert set(sft.dense) == (new_head if head is AutoModel else {"cls.predictions.bias"})
    assert "cls.predictions.decoder.weight" in sft.provenance.roles["frozen"]
    assert "cls.predictions.decoder.weight" not in sft.deltas
    # What is on disk gives the same loss on the same model, and fits the bare encoder.
    loaded = SparseFineTuning.load(tmp_path / "sft", base=AutoModel.from_pretrained(tmp_path / "model"))
    assert loaded.provenance.kind == "language" and loaded.provenance.metrics == metrics
    bare = AutoModel.from_pretrained(tmp_path / "model")
    before = {name: p.detach().clone() for name, p in bare.named_parameters()}
    with loaded.applied(bare):
        assert any((p != before[name]).any() for name, p in bare.named_parameters())


@pytest.mark.parametrize("head", [AutoModel, AutoModelForMaskedLM], ids=["bare", "masked-lm"])
@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family != "bert"])
def test_every_family_with_and_without_a_head(tmp_path, family, head):
    base = save(tmp_path / "model", family, head=head)
    options = {"steps": 8, "training": TrainingSettings(steps=1, batch_size=4, learning_rate=5e-2)}
    sft = adapt(
        str(tmp_path / "model"),
        text(tmp_path),
        tmp_path / "sft",
        language="sw",
        settings=settings(**options),
        work=tmp_path / "work",
    )
    metrics = sft.provenance.metrics
    assert "held-out masked-LM loss after" in metrics
    own = head is AutoModelForMaskedLM
    bias = own and base.get_output_embeddings().bias is not None
    if bias:  # without a bias, or with a new head, it takes more than eight steps
        assert metrics["held-out masked-LM loss after"] < metrics["held-out masked-LM loss before"]
    # A new head is kept whole; of one that was there only the output bias moves, which is one number per token.
    shapes = [value.shape for value in sft.dense.values()]
    only_the_bias = [(base.config.vocab_size,)] if bias else []
    # EuroBERT's head has nothing but the output matrix, which is frozen.
    assert shapes == only_the_bias if own else (len(shapes) > 1 or family == "eurobert")
    assert sft.provenance.fingerprint == fingerprint(base)
    bare = AutoModel.from_pretrained(tmp_path / "model")
    before = {name: p.detach().clone() for name, p in bare.named_parameters()}
    loaded = SparseFineTuning.load(tmp_path / "sft", base=bare)
    with loaded.applied(bare):
        assert any((p != before[name]).any() for name, p in bare.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in bare.named_parameters())


def test_an_empty_mask_trains_the_head_alone(tmp_path):
    save(tmp_path / "model", head=AutoModel)
    sft = adapt(
        str(tmp_path / "model"),
        text(tmp_path),
        tmp_path / "sft",
        language="sw",
        settings=settings(),
        work=tmp_path / "work",
        mask={},
    )
    assert sft.count == 0 and len(sft.dense) == 5
    assert "steps of each phase" in sft.provenance.metrics


def test_length_of_the_paper():
    assert paper_steps(1000, 8) == 30_000
    assert paper_steps(2000, 8) == 50_000
    assert paper_steps(10**6, 8) == 100_000


def test_bad_input(tmp_path):
    save(tmp_path / "model", head=AutoModelForMaskedLM)
    options = {"language": "sw", "settings": settings(), "work": tmp_path / "work"}
    with pytest.raises(InputError, match="is also an input"):
        adapt(str(tmp_path / "model"), text(tmp_path), tmp_path / "model", **options)
    with pytest.raises(InputError, match="nowhere"):
        adapt(str(tmp_path / "model"), [tmp_path / "nowhere.txt"], tmp_path / "sft", **options)
    for steps in (0, -3):
        with pytest.raises(InputError, match=f"steps is {steps}"):
            adapt(
                str(tmp_path / "model"),
                text(tmp_path),
                tmp_path / "sft",
                **{**options, "settings": settings(steps=steps)},
            )
    with pytest.raises(InputError, match="block_length is 141, but the model has 140 positions"):
        adapt(
            str(tmp_path / "model"),
            text(tmp_path),
            tmp_path / "sft",
            **{**options, "settings": settings(block_length=141)},
        )
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(InputError, match="tokens of text"):
        adapt(str(tmp_path / "model"), [tmp_path / "short.txt"], tmp_path / "sft", **options)
    save_file({"x": torch.ones(1)}, tmp_path / "model/model.safetensors")
    with pytest.raises(ArtefactError):
        adapt(str(tmp_path / "model"), text(tmp_path), tmp_path / "sft", **options)
    assert not (tmp_path / "sft").exists()
