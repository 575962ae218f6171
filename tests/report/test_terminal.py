import io
from itertools import pairwise

import pytest
from rich.console import Console

from gradscope import Run, Site
from gradscope.report._page import build
from gradscope.report.terminal import SITES, contents, summary
from tests.reference.made_up_runs import broken, deep_transformer, hostile, stacked_attention


def printed(content, width=110):
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(content)
    return out.getvalue()


@pytest.mark.parametrize("width", (80, 110, 200))
def test_findings_worst_first_with_all_their_words(width):
    page = build([broken(3)])
    text = printed(summary(page), width)
    assert "\x1b" not in text
    places = [text.index(view.label) for view in page.findings]
    assert all(a < b for a, b in pairwise(places))
    words = " ".join(text.split())
    for view in page.findings:
        for word in f"{view.message} {view.remedy} {view.finding.site}".split():
            assert word in words or len(word) > 25  # a very long name is folded
    assert page.verdict in words
    assert max(map(len, text.splitlines())) <= width


def test_a_clean_run_says_so_and_what_was_checked():
    rows = [(s, "m", "module", "", "grad_norm", 1.0) for s in range(3)]
    page = build([Run.from_records(rows)])
    said = " ".join(printed(summary(page)).split())
    assert said == f"No findings; {page.runs[0].ran}."
    assert "rules ran" in said and "no crossing" not in said and "no softmax" in said


def test_several_runs_are_compared():
    page = build([stacked_attention(6, steps=(0, 10, 20)), stacked_attention(2, latent=True)])
    text = printed(summary(page))
    assert "first-layer gradient" in text and text.count("latent") >= 2


def test_a_run_that_was_cut_off():
    run = stacked_attention(2, steps=(0, 10))
    run.meta["status"] = "recording"
    assert "cut off" in printed(summary(build([run]))) and "cut off" in printed(contents(run))


def test_names_are_no_markup_and_move_no_cursor():
    run = hostile()
    run.meta["name"] = "[red]x[/red]\x1b[2J"
    for text in (printed(contents(run, all_sites=True)), printed(summary(build([run])))):
        assert "\x1b" not in text
    text = printed(contents(run, all_sites=True), 400)
    assert "[red]x[/red]�[2J" in text and "lstm[red][1]#2" in text


def test_contents_count_what_is_there():
    run = Run.from_records(
        [
            (0, "a", "module", "", "grad_norm", 1.0),
            (5, "a", "module", "", "grad_norm", 1.0),
            (5, "b", "module", "", "grad_norm", 1.0),
            (7, "loss", "scalar", "", "value", 0.25),
        ],
        [Site("a", "module", "Linear", shape=(2, 3)), Site("c", "module", alias_of="a")],
    )
    lines = [line.split() for line in printed(contents(run)).splitlines()]
    assert ["recorded", "steps", "2,", "from", "0", "to", "5"] in lines
    assert ["module", "3", "2", "3", "grad_norm"] in lines
    assert ["loss", "0.25", "7"] in lines
    assert ["a", "module", "Linear", "2", "×", "3"] in lines
    assert ["c", "=", "a", "module"] in lines


def test_many_sites_are_listed_on_request():
    run = deep_transformer(24, steps=(0,))
    short, full = printed(contents(run), 200), printed(contents(run, all_sites=True), 200)
    assert short.count(" module ") <= SITES + 2 and "more sites" in short
    assert full.count("model.vision_tower.encoder.layers.23.mlp.fc1") == 1
    assert "more sites" not in full


def test_an_empty_run():
    assert "none" in printed(contents(Run()))


def test_what_ended_the_training_and_what_explains_a_finding_is_said():
    page = build([broken(4)])
    text = printed(summary(page))
    caused = [v for v in page.findings if v.cause]
    assert caused and text.count("Explained by F") == len(caused)
    rows = [(s, "m", "module", "", "grad_norm", 1.0) for s in range(3)]
    run = Run.from_records(rows, meta={"ended": "ValueError: oops", "status": "complete"})
    assert "the training ended with ValueError: oops" in printed(summary(build([run])))
    assert "ValueError: oops" in printed(contents(run))
