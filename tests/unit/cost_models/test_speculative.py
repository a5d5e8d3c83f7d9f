"""Tokens accepted per step: by hand, and the rates that docs/models/speculation.md offers beside the lengths they come from."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cost_models.catalog import load_model
from cost_models.speculative import accepted_tokens_per_step

PAGE = Path(__file__).parents[3] / "docs" / "models" / "speculation.md"
ROWS = re.findall(r"^\| (\S+) \| [^|]+ \| ([\d. ]+) \| `([\d.,]+)` \|$", PAGE.read_text(), re.MULTILINE)


def test_tokens_by_hand():
    # 1, 1 + 0.8, 1 + 0.8 + 0.8 x 0.5; the last rate repeats: + 0.8 x 0.5 x 0.5
    assert np.allclose(accepted_tokens_per_step([0, 1, 2, 3], (0.8, 0.5)), [1, 1.8, 2.2, 2.4])


@pytest.mark.parametrize(("model", "lengths", "rates"), ROWS)
def test_offered_rates_give_the_published_lengths(model, lengths, rates):
    published = [float(length) for length in lengths.split()]
    acceptance = tuple(float(rate) for rate in rates.split(","))
    assert np.allclose(accepted_tokens_per_step(range(1, 6), acceptance), published, atol=0.02)
    assert load_model(model).mtp_layers


def test_the_page_offers_rates():
    assert len(ROWS) >= 4
