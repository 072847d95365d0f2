"""The peak speed of a device, and the FLOPs of a model."""

import numpy as np
import pytest
from tiny import make_tiny_bert

from bench.measure import peak
from bench.measure.peak import count_flops, measure_peaks
from bench.model.model import Model
from bench.variants import Device


def test_peaks_are_plausible(monkeypatch):
    monkeypatch.setattr(peak, "PEAK_PRODUCTS", ((256, 256, 256),))
    monkeypatch.setattr(peak, "PEAK_SECONDS", 0.01)
    peaks = measure_peaks(["fp32", "bf16", "int8"], Device(None, 1))
    assert set(peaks) == {"fp32", "bf16", "int8"} and all(1e8 < flops < 1e15 for flops in peaks.values())


def test_the_flops_of_a_model_are_kaplans_count_plus_the_head(tmp_path, texts):
    """Kaplan et al., Scaling Laws for Neural Language Models, 2020, section 2.1, for BERT's layers: for each layer and
    token 2 x (4 h² + 2 h i), and 4 h L at length L; the pooler and the head once a text. In the last layer, query,
    output and feed-forward run for the first token only, keys and values for all tokens.
    """
    model = Model.from_folder(make_tiny_bert(tmp_path / "bert", texts), "bert")
    config = model.config
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head = 2 * hidden * (hidden + config.num_labels)

    def kaplan(length: int) -> int:
        whole = length * (2 * (4 * hidden**2 + 2 * hidden * inner) + 4 * hidden * length)
        last = 2 * (2 * hidden**2 * (length + 1) + 2 * hidden * inner) + 4 * hidden * length
        return (layers - 1) * whole + last + head

    assert count_flops(model, np.array([16, 64, 100]), list(range(5, 105))) == sum(map(kaplan, (16, 64, 100)))
    interpolated = np.arange(5, 120)
    expected = sum(map(kaplan, interpolated))
    assert count_flops(model, interpolated, list(range(5, 125))) == pytest.approx(expected, rel=2e-3)
