import math

import pytest

from gradscope import METRICS, Run, Site
from gradscope.figures import FIGURES, depth_ends
from gradscope.findings import Finding, View, analyze, rules
from gradscope.report._page import WORST_FIRST, best, build, compare, last_values, shown_by, verdict
from tests.reference.made_up_runs import broken, hostile, stacked_attention


@pytest.fixture(scope="module")
def pair():
    return build([stacked_attention(6), broken(4)])


def test_findings_of_all_runs_are_numbered_worst_first(pair):
    severities = [WORST_FIRST.index(v.finding.severity) for v in pair.findings]
    assert severities == sorted(severities) and "critical" in {
        v.finding.severity for v in pair.findings
    }
    assert [v.label for v in pair.findings] == [f"F{i + 1}" for i in range(len(severities))]
    found = [len(analyze(r.run)) for r in pair.runs]
    assert [sum(v.run == i for v in pair.findings) for i in (0, 1)] == found


def test_counts_and_verdict_agree_with_the_findings(pair):
    total = pair.counts()
    assert sum(total.values()) == len(pair.findings)
    assert total == {s: pair.counts(0)[s] + pair.counts(1)[s] for s in WORST_FIRST}
    assert list(total) == ["critical", "warning", "info"]
    assert verdict({"critical": 1, "warning": 2, "info": 0}) == "1 critical, 2 warnings"
    assert verdict({"critical": 0, "warning": 0, "info": 1}) == "1 note"
    assert verdict({}) == "No findings"


def test_a_symptom_names_its_cause_within_its_own_run(pair):
    explained = [v for v in pair.findings if v.finding.cause]
    assert explained, "the diverged run has a chain of findings"
    by_label = {v.label: v for v in pair.findings}
    for view in explained:
        cause = by_label[view.cause]
        assert cause.run == view.run and cause.finding.rule == view.finding.cause


def test_reaches():
    page = build([broken(3)])
    assert all(page.reaches(s) for s in WORST_FIRST)
    assert not any(build([quiet()]).reaches(s) for s in WORST_FIRST)


def quiet():
    rows = [(s, f"l.{k}", "module", "", "grad_norm", 1.0) for s in range(5) for k in range(4)]
    return Run.from_records(rows, [Site(f"l.{k}", "module", order=k, numel=1) for k in range(4)])


def test_marks_carry_what_figures_point_at(pair):
    for view, mark in zip(pair.findings, pair.marks, strict=True):
        f = view.finding
        assert (mark.label, mark.run, mark.site) == (view.label, view.run, f.site)
        assert (mark.kind, mark.metric, mark.sites) == (f.view.kind, f.view.metric, f.view.sites)


def finding(kind, metric):
    return Finding("r", "info", "s", 0, 1, {}, "m", "d", View(kind, metric, ("s",)))


@pytest.mark.parametrize(
    ("kind", "metric", "first"),
    [
        ("module", "grad_rms", "gradient_depth"),
        ("module", "grad_norm", "gradient_map"),
        ("softmax", "entropy", "softmax"),
        ("fork", "projection", "pathways"),
        ("parameter", "grad_norm", "parameter_map"),
        ("parameter", "update_ratio", "update_map"),
        ("scalar", "value", "training_curves"),
    ],
)
def test_every_finding_leads_to_the_figure_that_shows_it(kind, metric, first):
    assert shown_by(finding(kind, metric), FIGURES)[0].name == first


def test_a_finding_leads_nowhere_if_the_figure_is_missing():
    assert shown_by(finding("softmax", "entropy"), FIGURES[:2]) == ()


def test_evidence_is_numbers_without_what_was_not_measured():
    view = build([stacked_attention(6)]).findings[0]
    evidence = dict(view.evidence)
    assert "×10" in evidence["ratio first to last"] and evidence["ongoing"] == "yes"
    missing = [k for k, v in view.finding.evidence.items() if v is None]
    assert not {m.replace("_", " ") for m in missing} & set(evidence)


def test_comparison_is_final_values_and_gradients():
    runs = [stacked_attention(3), stacked_attention(3, latent=True)]
    stacked, latent = compare(runs, depth_ends(runs))
    assert stacked.loss == last_values(runs[0])["loss"][1]
    assert latent.val_accuracy > stacked.val_accuracy
    # By construction the gradient loses a factor 0.08 a layer, 0.7 with the latent pathway.
    assert stacked.ratio == pytest.approx(0.08**2, rel=0.3)
    assert latent.ratio == pytest.approx(0.7**2, rel=0.3)
    assert stacked.ratio == stacked.first_layer / stacked.last_layer


def test_the_best_of_the_compared_runs_is_a_number():
    assert best([None, math.nan, 0.5, 0.2], highest=False) == 0.2
    assert best([0.5, math.inf, 0.2], highest=True) == 0.5
    assert best([None, math.nan], highest=True) is None
    page = build([broken(2), stacked_attention(2, final=0.9)])
    assert page.best["loss"] == page.compared[1].loss


def test_last_values_are_those_of_the_last_step():
    run = Run.from_records(
        [
            (9, "a", "scalar", "", "value", 3.0),
            (1, "a", "scalar", "", "value", 1.0),
            (2, "b", "scalar", "", "value", math.nan),
        ]
    )
    last = last_values(run)
    assert last["a"] == (9, 3.0)
    assert last["b"][0] == 2 and math.isnan(last["b"][1])


def test_only_recorded_metrics_are_defined_and_in_their_own_words(pair):
    for name, unit, definition in pair.definitions:
        assert (unit, definition) == METRICS[name]
    names = {name for name, _, _ in pair.definitions}
    assert {"grad_rms", "gain", "projection", "update_ratio"} <= names
    assert {n for n, _, _ in build([quiet()]).definitions} == {"grad_norm", "grad_rms"}


def test_figures_that_cant_be_drawn_are_listed_with_the_reason():
    page = build([quiet()])
    assert [k.name for k in page.figures] == ["gradient_map", "gradient_depth"]
    assert len(page.absent) == len(FIGURES) - 2 and all(reason for _, reason in page.absent)


def test_a_run_that_says_nothing_about_itself():
    (view,) = build([quiet()]).runs
    assert view.complete and not view.unseen and not view.errors and view.model_text == ""
    assert view.facts == ["steps 0–4, 5 recorded"]


def test_every_rule_is_listed_with_what_it_looks_for_and_what_became_of_it(pair):
    assert {row.rule for row in pair.checked} == {rule.name for rule in rules()}
    for row in pair.checked:
        assert row.says.endswith(".") and len(row.outcomes) == 2
        for i, (labels, reason) in enumerate(row.outcomes):
            own = [v.label for v in pair.findings if (v.run, v.finding.rule) == (i, row.rule)]
            (outcome,) = [o for o in pair.runs[i].check.outcomes if o.rule == row.rule]
            assert labels == own and bool(reason) == bool(outcome.skipped)
            assert not (labels and reason)
    found = [any(labels for labels, _ in row.outcomes) for row in pair.checked]
    assert found == sorted(found, reverse=True) and any(found)


def test_why_a_rule_does_not_apply_is_told_with_the_way_out():
    reasons = {row.rule: row.outcomes[0][1] for row in build([quiet()]).checked}
    assert "scope.crossings()" in reasons["softmax-borne"]
    assert "no attention softmax" in reasons["peaked-softmax"]
    assert reasons["vanishing-gradient"] == ""


def test_what_failed_while_recording_is_a_line_and_the_whole_story():
    run = quiet()
    told = (
        "rank 1: step 3: gradients: Traceback (most recent call last):\n"
        '  File "x.py", line 3, in f\n    y()\nValueError: no <such> thing'
    )
    run.meta["errors"] = [told, "plain"]
    assert build([run]).runs[0].errors == [
        ("rank 1: step 3: gradients: ValueError: no <such> thing", told),
        ("plain", "plain"),
    ]


def test_where_a_nan_arose_is_told_by_step():
    run = quiet()
    entries = [
        (12000, "parameter", "", "layers.0.weight"),
        (5, "forward", "log", "(outside):log"),
        (7, "backward", "sqrt", "layers.3:sqrt"),
        (8, "parameter", "", "(input)"),
        (9, "forward", "exp", ""),
    ]
    keys = ("step", "phase", "operation", "where")
    run.meta["nonfinite"] = [dict(zip(keys, e, strict=True)) for e in entries]
    assert build([run]).runs[0].nonfinite == [
        "Step 5: first made by the forward pass of log, between the model and the loss.",
        "Step 7: first made by the backward pass of sqrt at layers.3:sqrt.",
        "Step 8: the model's input was not finite before the forward pass.",
        "Step 9: first made by the forward pass of exp.",
        "Step 12\u202f000: layers.0.weight was not finite before the forward pass.",
    ]


def test_how_long_a_step_takes_stands_in_the_details():
    rows = [
        (s, "step_seconds", "scalar", "", "value", v) for s, v in ((0, 9.0), (1, 0.5), (2, 0.1))
    ]
    run = Run.from_records([*rows, (0, "m", "module", "", "grad_norm", 1.0)])
    timings = dict(build([run]).runs[0].details)["Timings"]
    assert timings == [("a recorded step, median", "0.5 s")]


def test_ranks_and_unseen_parts_are_mentioned():
    page = build([stacked_attention(2, steps=(0, 10), ranks=2)])
    assert "2 ranks, averaged" in page.runs[0].facts
    assert build([hostile()]).runs[0].unseen == [{"what": "<what>", "why": "<why>"}]


def test_titles_name_few_runs_and_count_many():
    assert build([quiet()]).title == "run"
    assert build([quiet()] * 3).title == "run · run · run"
    assert build([quiet()] * 5).title == "5 runs compared"


def test_last_values_of_several_processes_are_averaged():
    nan = float("nan")
    rows = [(step, "loss", "scalar", "", "value", step + r, r) for step in (0, 10) for r in (0, 1)]
    rows += [(10, "b", "scalar", "", "value", (1.0, nan)[r], r) for r in (0, 1)]
    rows += [(20, "c", "scalar", "", "value", 3.0, 0), (10, "c", "scalar", "", "value", 9.0, 1)]
    found = last_values(Run.from_records(rows))
    assert found["loss"] == (10, 10.5)
    assert found["b"][0] == 10 and math.isnan(found["b"][1])
    assert found["c"] == (20, 3.0)


def test_of_several_findings_of_a_rule_the_one_that_explains_is_linked():
    peaked = {"entropy": 0.01, "max_prob": 0.99, "gain": 1e-5, "jacobian_norm": 0.01}
    rows, sites = [], []
    for k in range(6):
        sites.append(Site(f"layers.{k}", "module", order=k, depth=20 - k, shape=(8, 8), numel=64))
        rows += [
            (t, f"layers.{k}", "module", "", "grad_norm", 10 ** (-0.9 * (5 - k)))
            for t in range(0, 200, 5)
        ]
        for part in ("heads", "layers")[k > 0 :]:
            name = f"{part}.{k}:softmax"
            sites.append(Site(name, "softmax", shape=(4, 8, 16), order=k))
            rows += [
                (t, name, "softmax", "", metric, value)
                for t in range(0, 200, 5)
                for metric, value in peaked.items()
            ]
    rows += [(t, "loss", "scalar", "", "value", 1.0) for t in range(0, 200, 5)]
    page = build([Run.from_records(rows, sites)])
    by_label = {v.label: v.finding for v in page.findings}
    (symptom,) = [v for v in page.findings if v.finding.rule == "vanishing-gradient"]
    assert sum(f.rule == "peaked-softmax" for f in by_label.values()) == 2
    assert by_label[symptom.cause].site == symptom.finding.cause_site == "layers.0:softmax"


@pytest.mark.parametrize("name", ["loss", "train_loss", "train/total_loss"])
def test_the_loss_that_the_rules_read_is_the_headline(name):
    rows = [(0, name, "scalar", "", "value", 2.5), (0, "a", "module", "", "grad_norm", 1.0)]
    rows.append((0, "val_loss", "scalar", "", "value", 9.0))
    page = build([Run.from_records(rows)])
    assert page.runs[0].tiles[0] == ("final loss", "2.5")
