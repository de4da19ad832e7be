"""The rules of the verdict, one by one, on figures made up for them."""

from dataclasses import replace

import pytest

from rub.audits.base import Rate, Report, Verdict, lines
from rub.metrics.statistics import wilson
from rub.tasks.classification.audit import told
from rub.tasks.classification.verdict import Contrast, Estimate, Figures, Layer, conclude


def rate(hits, count=100):
    """A rate with the Wilson interval of so many hits."""
    return Rate(hits / count, *wilson(hits, count))


def contrast(selectivity, width=0.2, *, reached=0, other=100):
    own = 2.3 - selectivity
    means = (Estimate(value, value - width, value + width) for value in (own, 2.3, selectivity))
    return Contrast(*means, rate(reached), rate(other), 100)


def layer(before, after, never=None, title="probe", **more):
    return Layer(title, before, after, never, **more)


GONE = Figures(
    accuracy={"original": 0.92, "unlearned": 0.91},
    chance=1 / 9,
    known=rate(99),
    clean=rate(0),
    contrast=contrast(-3.7),
    attacked={"8/255": rate(0), "16/255": rate(0)},
    converged=True,
    log_odds=layer(0.97, 0.62, title="log-odds AUC"),
    transplant=layer(0.9, 0.01, title="transplant"),
    transplant_accuracy=0.12,
)
REFERENCED = replace(
    GONE,
    accuracy={**GONE.accuracy, "retrained": 0.92},
    said=rate(0),
    log_odds=layer(0.97, 0.62, 0.6, title="log-odds AUC"),
    transplant=layer(0.9, 0.01, 0.0, title="transplant"),
    layers=(layer(0.73, 0.57, 0.56),),
)
ALIVE = replace(GONE, contrast=contrast(-0.1, reached=92))


def case(verdict, says, figures=GONE, **changes):
    return pytest.param(replace(figures, **changes), verdict, says, id=f"{verdict}: {says}")


@pytest.mark.parametrize(
    ("figures", "name", "says"),
    [
        case("no residual found", "what 3.7 % of them could reach would have shown"),
        case("no residual found", "0.0 % (0.0 to 3.7) of images reach", REFERENCED),
        # an original that does not know the class shows nothing, whatever else is measured
        case("cannot tell", "the original model itself recognises only 40.0 %", known=rate(40)),
        # a wreck is a wreck, and nothing else is said of it
        case("destroyed", "its accuracy on kept classes is 11.0%", accuracy={"original": 0.92, "unlearned": 0.11}),
        case("destroyed", "nothing else is said", ALIVE, accuracy={"original": 0.92, "unlearned": 0.48}),
        # it still says it, or says it more easily than another class of the same image
        case("recovered", "not forgotten in the first place", clean=rate(70)),
        case("recovered", "brings the class back more easily", contrast=contrast(1.8, reached=99)),
        # ... which a search that reaches another class as easily does not show, whatever it brings back
        case("ordinary", "1.1 times the change", ALIVE),
        case("ordinary", "alive", ALIVE, contrast=contrast(0.3, 0.1, reached=99)),
        case("ordinary", "alive", ALIVE, contrast=contrast(-1.7, reached=43)),
        case("cannot tell", "N = 100 images are too few", contrast=contrast(0.3, 0.4, reached=60)),
        case("cannot tell", "masked gradients", contrast=contrast(0.0, reached=0, other=20)),
        # the class is out of reach, but stands in head or features
        case("hidden", "log-odds AUC: 0.960, the original's 0.970", log_odds=layer(0.97, 0.96, title="log-odds AUC")),
        case("hidden", "transplant: 88.0%", transplant=layer(0.9, 0.88, title="transplant"), transplant_accuracy=0.9),
        case("no residual found", "could reach", transplant=layer(0.9, 0.88), transplant_accuracy=0.2),
        case("hidden", "probe: 0.7, original 0.73, retrained 0.56", REFERENCED, layers=(layer(0.73, 0.70, 0.56),)),
        case("hidden", "steps: 2, original 1, retrained 6", REFERENCED, layers=(layer(1, 2, 6, "steps", margin=1.0),)),
        case("hidden", "still in the weights", converged=False, log_odds=layer(0.97, 0.97)),
        # ... but not by what original and retrained model agree on, nor by a layer without a reference
        case("no residual found", "could reach", REFERENCED, layers=(layer(0.99, 0.99, 0.97),)),
        case("no residual found", "could reach", REFERENCED, log_odds=layer(1.0, 0.99, 0.99)),
        case("no residual found", "(--retrained)", layers=(layer(0.73, 0.73),)),
        # a retrained model that cannot classify, or knows the class, is no reference
        case(
            "no residual found", "no reference: its accuracy on kept classes is 48.0%", REFERENCED,
            accuracy={"original": 0.92, "unlearned": 0.91, "retrained": 0.48}, layers=(layer(0.73, 0.70, 0.56),),
        ),
        case("no residual found", "it recognises 30.0 %", REFERENCED, said=rate(30), layers=(layer(0.73, 0.70, 0.56),)),
        # a search that was still improving is no search, unless it was strong enough for other classes
        case("cannot tell", "still improving", converged=False, contrast=contrast(-3.7, other=80)),
        case("no residual found", "could reach", converged=False),
    ],
)  # fmt: skip
def test_the_rules_of_the_verdict(figures, name, says):
    verdict = conclude(figures, "16/255")
    assert verdict.name == name, verdict
    assert says in " ".join(verdict.why)
    assert all("\n" not in sentence for sentence in verdict.why)


def test_a_retrained_model_never_decides_about_the_output():
    for figures in (GONE, ALIVE, replace(GONE, contrast=contrast(1.8, reached=99))):
        given = replace(figures, said=rate(0), accuracy={**figures.accuracy, "retrained": 0.9})
        assert conclude(given, "16/255").name == conclude(figures, "16/255").name


def test_a_report_is_told_in_lines():
    report = Report(conclude(REFERENCED, "16/255"), REFERENCED, tuple(told(REFERENCED, "16/255")), "16/255", (), ())
    said = list(lines(report))
    assert "TA, kept classes                original 92.0 %, unlearned 91.0 %, retrained 92.0 %" in said
    assert "UA, UMA at 8/255, unlearned     0.0 % (0.0 to 3.7)" in said
    assert "radius (geometric mean)         own class 64/255, another class 4.92/255" in said
    assert "selectivity, log2(other / own)  -3.70 (-3.90 to -3.50)" in said
    assert "probe                           original 0.730, unlearned 0.570, retrained 0.560" in said
    assert "[b]Verdict: no residual found[/b]" in said
    assert max(map(len, said)) <= 160
    failed = Report(Verdict("cannot tell", ("broke: [red]x",)), None, (), "16/255", (), ("broke",))
    assert list(lines(failed)) == ["[b]Verdict: cannot tell[/b]", r"  - broke: \[red]x"]


@pytest.mark.parametrize(
    ("right", "chance", "hinted"), [(0.13, 1 / 9, True), (0.4, 1 / 3, True), (0.6, 1 / 3, False), (0.92, 1 / 9, False)]
)
def test_an_original_that_is_hardly_right_gets_a_hint_at_its_normalisation(right, chance, hinted):
    odd = replace(GONE, accuracy={"original": right, "unlearned": 0.12}, chance=chance)
    assert ("give --mean and --std" in "\n".join(told(odd, "16/255"))) == hinted
