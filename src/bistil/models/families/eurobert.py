"""EuroBERT (Boizard et al. 2025): rotary positions, heads that share keys and values, RMS norms before each block."""

from bistil.models.families import Family, register

register(
    Family(
        model_type="eurobert",
        layers_path="layers",
        embeddings_path="embed_tokens",
        word_embeddings="embed_tokens.weight",
        self_attention_path="self_attn",
        attention_output_path="self_attn.o_proj",
        rotary=True,
        projections=("q_proj", "k_proj", "v_proj"),
        final_norm_path="norm",
    )
)
