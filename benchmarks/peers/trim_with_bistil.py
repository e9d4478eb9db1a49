"""Trim with bistil: MODEL OUTPUT MIN_COUNT TEXT... (the threshold is MIN_COUNT of all tokens, as the peers count)."""

import sys
from pathlib import Path

from bistil.settings.recipe import TrimSettings
from bistil.vocabulary import trim_vocabulary

if __name__ == "__main__":
    model, output, threshold, *texts = sys.argv[1:]
    trim_vocabulary(
        model,
        {Path(text).stem: [Path(text)] for text in texts},
        Path(output),
        settings=TrimSettings(threshold=float(threshold)),
    )
