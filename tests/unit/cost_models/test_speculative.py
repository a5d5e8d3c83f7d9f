"""Tokens accepted per step: by hand, and the rates that docs/models/speculation.md offers beside the lengths they come from."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cost_models.acceptance import AcceptanceCurve, published_acceptance, published_rates
from cost_models.catalog import load_model, model_names
from cost_models.errors import UnsupportedModelError
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


def test_rates_of_a_curve_by_hand():
    # gains 0.8, 0.4, -0.1, 0.2: the last two rise, so both become their mean 0.05; 0.4 / 0.8, 0.05 / 0.4, 0.05 / 0.05
    curve = AcceptanceCurve(model="m", drafter="mtp", text="t", file="f", lengths=(1.8, 2.2, 2.1, 2.3))
    assert curve.rates() == (0.8, 0.5, 0.125, 1.0)


@pytest.mark.parametrize("curve", published_acceptance(), ids=lambda curve: f"{curve.model} {curve.text}")
def test_published_curves_are_kept_but_for_noise(curve):
    # lengths are means of single runs: 3.0 after 3.16 for V4-Pro at seven drafts, five per cent of noise
    assert curve.model in model_names()
    lengths = accepted_tokens_per_step(range(1, 9), curve.rates())
    assert np.all(np.diff(lengths) >= 0)
    assert np.max(np.abs(lengths / np.array(curve.lengths) - 1)) < 0.06


def test_the_page_offers_what_the_data_file_has():
    for model, lengths, rates in ROWS:
        own = [curve for curve in published_acceptance() if curve.model == model]
        assert [float(length) for length in lengths.split()] in [list(curve.lengths[:5]) for curve in own]
        offered = [float(rate) for rate in rates.split(",")]
        assert any(np.allclose(offered[:2], curve.rates()[:2], atol=0.011) for curve in own)


def test_a_drafter_that_is_not_priced_and_a_text_without_a_curve_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="measured with eagle3, a drafter of its own weights"):
        published_rates("minimax-m3", "coding")
    with pytest.raises(UnsupportedModelError, match="no acceptance 'chat' is published"):
        published_rates("glm-5.2", "chat")
