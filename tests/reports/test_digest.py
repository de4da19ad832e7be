"""A run in a dozen lines."""

from dataclasses import replace

from rub.reports.digest import MOST, digest


def test_what_was_measured_what_is_left_and_what_the_controls_say(tiny):
    first, least, controls, alarm = digest(tiny.result)
    assert first == "image classification, digits, resnet10-w2, rub-paper-1*51860d: 1 method, 1 model each, N = 8"
    assert least == "  UA after uma at 32/255: ft 75.0!"
    assert controls == "  UA after uma at 32/255: [original 75.0!], [retrain 0.0!], [sham 0.0!], [zero-row 0.0!]"
    assert alarm.startswith("  CONTROL FAILED: at 32/255 the search brings back 75 %")


def test_many_groups_are_counted(tiny):
    rows = [
        record.model_copy(update={"experiment": f"part {number}"})
        for number in range(9)
        for record in tiny.result.records
    ]
    said = digest(replace(tiny.result, records=tuple(rows), samples=(), values=()))
    assert len(said) <= MOST + 1
    assert said[-1] == "and 7 more on the page"


def test_tables_are_the_first_of_each_page_all_or_none(tiny, rub):
    main, everything, none = (
        rub("run", tiny.path, "--store", tiny.store, "--tables", which).out for which in ("main", "all", "none")
    )
    assert "Table 1" in main
    assert "Attacks and controls" not in main
    assert "Attacks and controls" in everything
    assert "Table 1" not in none
    for said in (main, everything, none):
        assert "UA after uma at 32/255: ft 75.0!" in said
    said = rub("run", tiny.path, "--tables", "some")
    assert (said.code, said.err) == (2, "rub: --tables some: should be main, all or none\n")
