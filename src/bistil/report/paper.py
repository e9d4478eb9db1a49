"""The paper's own figures, to stand beside ours where task and language are the paper's (Ansell et al. 2023).

Of its tables of zero-shot results: named entities (MasakhaNER 1.0, F1) and dependency parsing (UD, LAS), per language.
Its teachers are larger than those of most studies, so only gaps compare, and those roughly.
"""

from collections.abc import Mapping

LTSFT, DISTILMBERT, LRF2, LRF3 = "LTSFT", "DistilmBERT", "BiStil-TF, LRF 2", "BiStil-TF, LRF 3"

_NER = "hau ibo kin lug luo pcm swa wol yor"
_DP = "ara bam bxr fao glv hsb jpn kpv mlt myv olo san sme uig yue zho"


def _row(languages: str, figures: str) -> dict[str, float]:
    return dict(zip(languages.split(), map(float, figures.split()), strict=True))


FIGURES: Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]] = {
    ("token-classification", "f1"): {
        LTSFT: _row(_NER, "83.5 76.7 67.4 67.9 54.7 74.6 79.4 66.3 74.8"),
        DISTILMBERT: _row(_NER, "81.1 73.2 65.3 63.4 50.0 69.2 77.7 64.4 71.2"),
        LRF2: _row(_NER, "81.0 74.8 67.5 67.3 55.0 72.9 78.4 69.0 75.7"),
        LRF3: _row(_NER, "79.6 74.8 64.6 64.5 56.7 70.6 77.2 66.1 72.8"),
    },
    ("dependency-parsing", "las"): {
        LTSFT: _row(_DP, "53.6 16.5 25.9 55.5 42.4 60.5 19.7 27.2 55.4 45.3 47.8 25.2 42.1 16.7 34.0 37.0"),
        LRF2: _row(_DP, "53.2 16.4 24.6 54.8 39.1 59.0 19.0 23.8 54.1 43.5 46.0 26.9 40.7 13.1 32.7 36.4"),
    },
}
"""By kind of task and metric: per system of the paper, a score in percent by language."""


def paper_figure(task: str, metric: str, system: str | None, language: str) -> float | None:
    """A figure of the paper's, in percent; None where it has none.

    Args:
        task: kind of the task.
        system: one of this module's names.
        language: code of three letters.
    """
    return FIGURES.get((task, metric), {}).get(system or "", {}).get(language)
