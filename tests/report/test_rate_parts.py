"""Rates of several tokenizers: the front is told, refusals stay in the table."""

from dataclasses import asdict

from vistok.metrics.rate_distortion import RatePoint
from vistok.report.page import Section, render_page
from vistok.report.rate_parts import curves_of, front_of, is_rates, rate_parts

POINTS = [
    RatePoint("{a} <b>", 4, 4.0, 0.5, 30.0, 0.9, 29.0, None),
    RatePoint("{a} <b>", 2, 2.0, 0.25, 31.0, 0.8, None, None),
    RatePoint("other", None, 9.0, 1.0, 33.0, 0.95, 32.0, 31.0),
    RatePoint("none", refused="no decoder | at all"),
]
ROWS = [asdict(point) for point in POINTS]


def test_the_front_is_of_bits_and_psnr() -> None:
    assert front_of(ROWS) == [1, 2]


def test_codecs_are_curves_where_they_fit() -> None:
    found = dict(curves_of(ROWS))
    assert list(found) == ["{a} <b>", "other", "JPEG, equal bytes", "WebP, equal bytes"]
    assert found["JPEG, equal bytes"] == [(0.5, 29.0, False), (1.0, 32.0, False)]


def test_the_page_shows_every_row() -> None:
    value = {"rows": ROWS, "notes": ["a note"], "settings": {"side": 96}}
    assert is_rates(value) and not is_rates({"rows": []}) and not is_rates({"rows": [{"psnr": 1}]})
    text = render_page("t", [Section("s", "k", rate_parts(value))])
    assert "{a} &lt;b&gt;: 0.25 bits a pixel, 31.00 dB" in text and "no decoder | at all" in text and "a note" in text
    nothing = render_page("t", [Section("s", "k", rate_parts({"rows": ROWS[3:]}))])
    assert "no decoder | at all" in nothing and "<svg" not in nothing
