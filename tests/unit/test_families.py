"""The table of paths, against real models of every family."""

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

from bistil.models.families import family_of


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_paths_lead_to_the_parts(family):
    model = tiny.model(family, head=AutoModelForSequenceClassification)
    paths = family_of(model)
    assert paths.model_type == family
    assert (paths.depth(model.config), paths.width(model.config), paths.heads(model.config)) == (6, 32, 4)
    assert len(paths.layers(model)) == 6
    names = dict(model.named_parameters())
    words = names[paths.prefix(model) + paths.word_embeddings]
    assert words is model.get_input_embeddings().weight
    assert paths.prefix(model) + paths.word_embeddings in paths.embedding_parameters(model)
    assert (paths.final_norm(model) is not None) == (family in ("modernbert", "eurobert"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_head_on_chosen_states_gives_the_models_logits(family):
    model = tiny.masked_lm(family)
    ids = torch.arange(5, 25).view(2, 10)
    states = family_of(model).encoder(model)(ids)[0]
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[0, 3] = chosen[1, 7] = True
    torch.testing.assert_close(family_of(model).masked_lm_logits(model, states[chosen]), model(ids).logits[chosen])
