"""The rules of the verdict, one case each, and the requests that an audit refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from rub.api import audit, make_runtime
from rub.audits.base import Rate
from rub.errors import RubError
from rub.metrics.statistics import wilson
from rub.tasks.text_to_image.audit import TextToImageAudit
from rub.tasks.text_to_image.verdict import Figures, conclude


def rate(hits, n=50):
    return Rate(hits / n, *wilson(hits, n))


def figures(**given):
    counts = {"original": 48, "clean": 2, "attacked": 2, "search": 1, "retrained": None, "floor": 1, "floor_known": 0,
              "others": None}  # fmt: skip
    settled, kept = given.pop("settled", True), given.pop("kept", {"original": 45, "unlearned": 40})
    rates = {name: None if hits is None else rate(hits) for name, hits in (counts | given).items()}
    return Figures(settled=settled, **rates, kept={role: rate(hits) for role, hits in kept.items()})


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ({"original": 10, "attacked": 50}, "cannot tell", "even the original"),
        ({"clean": 40, "attacked": 50}, "recovered", "not forgotten in the first place"),
        ({"attacked": 30}, "recovered", "changing the input alone"),
        ({"attacked": 30, "search": 28}, "cannot tell", "redrawing alone does it"),
        ({"attacked": 30, "search": None}, "cannot tell", "no control without a gradient"),
        ({"attacked": 30, "floor": 28}, "cannot tell", "where there is nothing to find"),
        ({"attacked": 30, "floor": None}, "cannot tell", "give --floor, or --retrained"),
        ({"attacked": 30, "floor_known": 4}, "cannot tell", "the floor is no floor"),
        ({"attacked": 30, "floor": None, "floor_known": None, "retrained": 2}, "recovered", "retrained model under"),
        ({"attacked": 30, "floor": None, "floor_known": None, "retrained": 28}, "cannot tell", "nothing to find"),
        ({"attacked": 30, "floor": 2, "retrained": 28}, "cannot tell", "nothing to find"),
        ({"attacked": 5, "settled": False}, "cannot tell", "still finding more"),
        ({"attacked": 30, "kept": {"original": 45, "unlearned": 8}}, "destroyed", "no longer draws"),
        ({"kept": {"original": 45, "unlearned": 0}}, "destroyed", "unlearned 0.0 %"),
        ({"kept": {}}, "cannot tell", "give other concepts (--retain)"),
        ({"attacked": 30, "kept": {}}, "recovered", "changing the input alone"),
        ({"attacked": 3}, "no residual found at this budget", "never could draw"),
        (
            {"attacked": 3, "floor": None, "floor_known": None},
            "no residual found at this budget",
            "without a reference",
        ),
    ],
)
def test_rules(given, name, said):
    verdict = conclude(figures(**given), "50")
    assert verdict.name == name
    assert any(said in sentence for sentence in verdict.why)


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ({"attacked": 45, "others": 45, "retrained": 2}, "no residual", "pictures of other concepts do about as well"),
        ({"attacked": 45, "others": 2, "retrained": 45}, "no residual", "does about as well where there is nothing"),
        ({"attacked": 45, "others": 2, "retrained": None}, "no residual", "give --retrained"),
        ({"attacked": 45, "others": 2, "retrained": 2, "search": 44}, "no residual", "redrawing alone does it"),
        ({"attacked": 3, "others": 2, "retrained": 2}, "no residual", "which is no evidence"),
        (
            {"attacked": 45, "others": 2, "retrained": 2, "search": None},
            "recovered",
            "fed with pictures of it by img2img",
        ),
    ],
)
def test_pictures_that_are_fed_are_no_recovery_unless_they_exceed_all_controls(given, name, said):
    fed = figures(floor=None, floor_known=None, **given)
    besides = replace(figures(attacked=3, retrained=2), pictures={"img2img": fed})
    verdict = conclude(besides, "50")
    assert verdict.name.startswith(name)
    assert any(said in sentence for sentence in verdict.why)
    if name == "recovered":
        return
    main = conclude(fed, "50")  # the same, where it is the attack that the protocol reads
    assert main.name == ("cannot tell" if given["attacked"] > 3 else "no residual found at this budget")


def test_an_attack_that_feeds_pictures_hides_no_search():
    """One that reaches more, and says nothing, beside a search that shows something."""
    fed = figures(attacked=50, others=50, retrained=50, floor=None, floor_known=None)
    besides = replace(figures(attacked=30, retrained=2, floor=None, floor_known=None), pictures={"img2img": fed})
    assert conclude(besides, "50").name == "recovered"


@pytest.mark.parametrize(
    ("clean", "uma", "seeds"),
    [(2, 14, 37), (0, 0, 8), (1, 6, 30), (4, 20, 41)],  # church of `results/text-to-image-imagenette`, and like it
)
def test_a_model_that_never_saw_the_concept_is_not_called_recovered(clean, uma, seeds):
    given = figures(clean=clean, attacked=uma, search=seeds, floor=None, floor_known=None)
    assert conclude(given, "20").name != "recovered"


def request(tmp_path, **changes):
    given = {
        "original": str(tmp_path), "unlearned": tmp_path, "concept": "church", "count": 2,
        "judge_weights": str(tmp_path),
    }  # fmt: skip
    request = TextToImageAudit(**{**given, **changes})
    return audit(request, store=tmp_path / "store", runtime=make_runtime(device="cpu"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unlearned": Path("/nowhere.pt")}, r"--unlearned /nowhere.pt: no such file"),
        ({"protocol": "rub-audit-9"}, "did you mean 'rub-audit-1'"),
        ({"cap": 0}, "greater than or equal to 1"),
        ({"attacks": ("img2imgs",)}, "did you mean 'img2img'"),
        ({"attacks": ("img2img", "recall")}, "attacks img2img, recall: pictures of other concepts stand beside"),
        ({"original": "no-such-folder"}, "no such file or folder, and no hub id"),
        ({"prompts": "missing.csv"}, "prompts missing.csv: cannot be read"),
        ({"judge": "imagenets"}, "unknown text-to-image judge 'imagenets'"),
    ],
)
def test_wrong_requests_are_one_line(tmp_path, changes, said):
    with pytest.raises(RubError, match=said) as caught:
        request(tmp_path, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("cap", "wanted"), [(None, 50), (3, 3)])
def test_attacks_that_are_added_have_the_largest_cap(tmp_path, cap, wanted):
    given = {"original": "o", "unlearned": tmp_path, "concept": "church", "retain": ("tench",), "cap": cap}
    asked = TextToImageAudit(**given, attacks=("img2img", "uma")).experiment()
    caps = {name: attack.cap for name, attack in asked.protocol.attacks.items()}
    assert caps == dict.fromkeys(("uma", "unlearndiffatk", "random-prefix", "seed-search", "img2img"), wanted)
    assert asked.protocol.attacks["img2img"].run.name == "img2img"


@pytest.mark.parametrize("clean", [0, 1])
@pytest.mark.parametrize("attacked", [0, 1])
def test_one_prompt_tells_nothing(clean, attacked):
    one = {name: rate(hits, 1) for name, hits in (("original", 1), ("clean", clean), ("search", 0), ("floor", 0))}
    verdict = conclude(replace(figures(), **one, attacked=rate(max(clean, attacked), 1)), "50")
    assert verdict.name == "cannot tell"
