from itertools import permutations

import pytest

from gradscope.findings import Finding, View
from gradscope.findings._causes import rank


def finding(rule, severity="warning", first=0, site="a", *, edges=(), **evidence):
    view = View("module", "grad_rms", (site,), edges=tuple(edges))
    return Finding(rule, severity, site, first, 100, evidence, "It is so.", "Change it.", view)


def story(*findings):
    return [(f.rule, f.severity, f.cause) for f in rank(list(findings))]


def test_an_explosion_that_ends_in_nan_is_one_story():
    assert story(
        finding("non-finite", "critical", 12),
        finding("exploding-gradient", "warning", 8, along="time", diverged=True),
        finding("update-too-large", "info", 4, update_ratio_start=1e-3),
    ) == [
        ("update-too-large", "critical", ""),
        ("exploding-gradient", "critical", "update-too-large"),
        ("non-finite", "critical", "exploding-gradient"),
    ]


@pytest.mark.parametrize(
    ("along", "explosion", "update", "start", "root"),
    [
        ("depth", 0, 0, 2.0, "exploding-gradient"),  # as initialised
        ("depth", 9, 3, 2.0, "update-too-large"),
        ("time", 9, 9, 1e-3, "exploding-gradient"),  # one bad batch
        ("time", 9, 9, 0.4, "update-too-large"),
        ("time", 9, 3, 1e-3, "update-too-large"),
        ("time", 3, 9, 0.4, "exploding-gradient"),
    ],
)
def test_large_updates_and_explosions(along, explosion, update, start, root):
    found = rank(
        [
            finding("update-too-large", first=update, update_ratio_start=start),
            finding("exploding-gradient", first=explosion, along=along, diverged=True),
        ]
    )
    assert found[0].rule == root
    assert (found[0].cause, found[1].cause) == ("", root)


def test_a_cause_does_not_come_after_its_symptom():
    causes = {
        rule: cause
        for rule, _, cause in story(
            finding("non-finite", "critical", 3),
            finding("exploding-gradient", first=8, along="time"),
        )
    }
    assert causes == {"non-finite": "", "exploding-gradient": ""}


@pytest.mark.parametrize(
    ("softmax", "cause"), [("layers.2.attn", "peaked-softmax"), ("decoder.0.attn", "")]
)
def test_a_softmax_explains_what_vanishes_in_its_own_structure(softmax, cause):
    found = rank(
        [
            finding("vanishing-gradient", site="layers.0.out", largest_drop_decades=1.0),
            finding("peaked-softmax", site=softmax),
        ]
    )
    assert {f.rule: f.cause for f in found}["vanishing-gradient"] == cause


def test_an_edge_places_a_fork_too():
    found = rank(
        [
            finding("starved-pathway", site="(output):add", edges=["layers.1.q:linear"]),
            finding("diffuse-softmax", site="layers.0.attn"),
        ]
    )
    assert found[1].cause == "diffuse-softmax"


@pytest.mark.parametrize(("agreement", "explains"), [(0.0, True), (1e-3, True), (0.09, False)])
def test_a_cancelling_fork_explains_no_more_than_it_cancels(agreement, explains):
    found = rank(
        [
            finding("vanishing-gradient", "critical", largest_drop_decades=4.0),
            finding("cancelling-fork", agreement=agreement),
        ]
    )
    assert bool({f.rule: f.cause for f in found}["vanishing-gradient"]) == explains


@pytest.mark.parametrize(("share", "severity"), [(0.2, "info"), (1.0, "critical")])
def test_a_cause_is_as_severe_as_what_it_brings_about_which_becomes_a_note(share, severity):
    assert story(
        finding("vanishing-gradient", "info", site="layers.0.out", largest_drop_decades=1.0),
        finding("no-update", "critical", site="layers.0.out.weight", share_of_parameters=share),
    ) == [("vanishing-gradient", "critical", ""), ("no-update", severity, "vanishing-gradient")]


@pytest.mark.parametrize(("operation", "cause"), [("log", "non-finite"), ("exp", "")])
def test_a_burst_on_the_way_to_where_a_derivative_has_no_end(operation, cause):
    burst = finding("exploding-gradient", "critical", 5, along="time", bursts=1)
    found = rank([burst, finding("non-finite", "critical", 8, operation=operation)])
    assert {f.rule: f.cause for f in found}["exploding-gradient"] == cause


@pytest.mark.parametrize(("rises_from", "alarms"), [("side.1", 1), ("side.1.norm", 2), ("x.1", 2)])
def test_growth_along_a_chain_that_begins_in_a_starved_head(rises_from, alarms):
    growth = finding("exploding-gradient", along="depth", largest_rise_from=rises_from)
    starved = finding("starved-pathway", site="trunk", edge="side.0:silu", share=1e-5)
    assert sum(severity == "warning" for _, severity, _ in story(growth, starved)) == alarms


@pytest.mark.parametrize(
    ("state", "severity"), [("stuck", "info"), ("cleared", "info"), ("stopped", "warning")]
)
def test_attention_of_a_model_that_does_not_move_stays_as_it_was_made(state, severity):
    held = finding("no-update", "critical", state=state, share_of_parameters=1.0)
    uniform = finding("diffuse-softmax", share_of_steps=1.0)
    assert ("diffuse-softmax", severity) in [(r, s) for r, s, _ in story(held, uniform)]


def test_the_first_of_several_causes():
    found = rank(
        [
            finding("exploding-gradient", "info", 2, along="time", site="b"),
            finding("exploding-gradient", "info", 0, along="depth", site="c"),
            finding("non-finite", "critical", 9),
        ]
    )
    assert [(f.site, f.severity) for f in found] == [
        ("c", "critical"),
        ("a", "critical"),
        ("b", "info"),
    ]


def test_what_is_exactly_zero_behind_dead_units_is_their_story():
    dead = finding("dead-units", "critical", dead_fraction=1.0)
    zero = finding("detached", "critical", exactly_zero=True)
    assert story(dead, zero)[1] == ("detached", "info", "dead-units")
    cut = finding("detached", "critical", exactly_zero=False)
    assert story(dead, cut)[1] == ("detached", "critical", "")


def test_what_is_exactly_zero_does_not_move():
    zero = finding("detached", "critical", exactly_zero=True)
    still = finding("no-update", "critical", state="zero", share_of_parameters=0.4)
    stuck = finding("no-update", "critical", state="stuck", share_of_parameters=0.4)
    assert story(zero, still)[1] == ("no-update", "info", "detached")
    assert ("no-update", "critical", "") in story(zero, stuck)


@pytest.mark.parametrize(("parameter", "cause"), [("stem", "vanishing-gradient"), ("head", "")])
def test_what_stands_still_before_a_ladder_is_its_story(parameter, cause):
    vanishing = finding("vanishing-gradient", "critical", site="blocks.5")
    still = finding(
        "no-update", "critical", site=f"{parameter}.weight", state="stuck", share_of_parameters=0.1
    )
    ranked = rank([vanishing, still], {"stem": 0, "blocks.5": 5, "head": 9})
    assert {f.rule: f.cause for f in ranked}["no-update"] == cause


@pytest.mark.parametrize(("share", "cause"), [(1e-8, "starved-pathway"), (1e-4, "")])
def test_a_branch_that_gets_nothing_stands_still_whatever_its_name(share, cause):
    starved = finding("starved-pathway", site="(output):add", share=share)
    still = finding("no-update", site="blocks.0.weight", state="stuck", share_of_parameters=0.5)
    assert {f.rule: f.cause for f in rank([starved, still])}["no-update"] == cause


def test_gates_at_their_ends_cancel():
    saturated = finding("saturated-activation")
    cancelling = finding("cancelling-fork", agreement=0.0)
    assert story(saturated, cancelling)[1] == ("cancelling-fork", "info", "saturated-activation")


def test_structure_stands_behind_what_befell_the_run():
    found = story(finding("information-bottleneck"), finding("peaked-softmax"))
    assert [rule for rule, _, _ in found] == ["peaked-softmax", "information-bottleneck"]


@pytest.mark.parametrize(("rises_from", "cause"), [("experts.0", "starved-pathway"), ("head", "")])
def test_a_chain_that_begins_in_a_starved_branch(rises_from, cause):
    starved = finding("starved-pathway", edge="experts.0.0:addmm", share=1e-9)
    growth = finding("exploding-gradient", along="depth", largest_rise_from=rises_from)
    assert {f.rule: f.cause for f in rank([starved, growth])}["exploding-gradient"] == cause


def test_steps_of_weights_that_are_put_back_lead_nowhere():
    back = finding("no-update", "critical", state="put back", share_of_parameters=1.0)
    large = finding("update-too-large", update_ratio_start=0.04)
    assert story(back, large)[1] == ("update-too-large", "info", "no-update")


@pytest.mark.parametrize(("diverged", "severity"), [(True, "warning"), (False, "info")])
def test_a_burst_after_a_large_update_is_a_note_where_training_goes_on(diverged, severity):
    large = finding("update-too-large", update_ratio_start=1e-3)
    burst = finding("exploding-gradient", first=5, along="time", diverged=diverged)
    assert story(large, burst)[1] == ("exploding-gradient", severity, "update-too-large")


@pytest.mark.parametrize(("severity", "shown"), [("critical", "critical"), ("warning", "info")])
def test_a_large_update_that_kills_a_whole_layer_leaves_an_alarm(severity, shown):
    found = story(finding("update-too-large"), finding("dead-units", severity, 5))
    assert ("dead-units", shown, "update-too-large") in found


def test_what_follows_from_the_cause_of_its_cause():
    found = story(
        finding("unscaled-input"),
        finding("update-too-large", first=1, update_ratio_start=1.0),
        finding("dead-units", "critical", 5),
    )
    assert found == [
        ("unscaled-input", "critical", ""),
        ("update-too-large", "info", "unscaled-input"),
        ("dead-units", "info", "update-too-large"),
    ]


@pytest.mark.parametrize(
    ("gain", "state", "cause"),
    [
        (1e-9, "stopped", "peaked-softmax"),
        (1e-9, "zero", "peaked-softmax"),
        (1e-9, "stuck", ""),  # by its learning rate
        (1e-3, "stopped", ""),
        (None, "stopped", ""),
    ],
)
def test_a_softmax_that_passes_nothing_stops_what_computes_its_logits(gain, state, cause):
    peaked = finding("peaked-softmax", gain=gain)
    still = finding("no-update", state=state, share_of_parameters=0.2)
    assert {f.rule: f.cause for f in rank([peaked, still])}["no-update"] == cause


@pytest.mark.parametrize(("rule", "severity"), [("underflow", "info"), ("dead-units", "critical")])
def test_that_nothing_moves_is_an_alarm_of_its_own_unless_gradients_underflow(rule, severity):
    still = finding("no-update", "critical", state="zero", share_of_parameters=1.0)
    assert ("no-update", severity, rule) in story(finding(rule, "critical"), still)


@pytest.mark.parametrize(
    ("rule", "cause"), [("peaked-softmax", "peaked-softmax"), ("dead-units", "dead-units")]
)
def test_a_softmax_in_the_models_own_forward_may_lie_anywhere(rule, cause):
    vanishing = finding("vanishing-gradient", site="key", largest_drop_decades=1.0)
    found = story(finding(rule, site="(output):softmax"), vanishing)
    assert found[1] == ("vanishing-gradient", "info", cause)


def test_uniform_since_the_weights_were_thrown_about():
    found = story(finding("update-too-large"), finding("diffuse-softmax", first=5))
    assert found[1] == ("diffuse-softmax", "info", "update-too-large")


@pytest.mark.parametrize(("along", "cause"), [("time", "peaked-softmax"), ("depth", "")])
def test_a_burst_through_rows_that_open_for_a_moment(along, cause):
    burst = finding("exploding-gradient", first=5, along=along, diverged=False)
    found = {f.rule: f for f in rank([finding("peaked-softmax"), burst])}["exploding-gradient"]
    assert (found.cause, found.severity) == (cause, "info" if cause else "warning")


@pytest.mark.parametrize(
    ("state", "share", "cause"),
    [("stuck", 1.0, "no-update"), ("stuck", 0.3, ""), ("zero", 1.0, "")],
)
def test_a_softmax_that_stays_as_it_was_made(state, share, cause):
    still = finding("no-update", "critical", state=state, share_of_parameters=share)
    uniform = finding("diffuse-softmax", share_of_steps=1.0)
    found = {f.rule: f for f in rank([still, uniform])}["diffuse-softmax"]
    assert (found.cause, found.severity) == (cause, "info" if cause else "warning")


@pytest.mark.parametrize(
    ("agreement", "parameter", "cause"),
    [(1e-5, "stem", "cancelling-fork"), (0.05, "stem", ""), (1e-5, "head", "")],
)
def test_what_lies_before_a_fork_of_which_nothing_is_left_stands_still(agreement, parameter, cause):
    fork = finding("cancelling-fork", site="trunk", agreement=agreement)
    still = finding("no-update", site=f"{parameter}.weight", state="stuck", share_of_parameters=0.3)
    ranked = rank([fork, still], {"stem": 0, "trunk": 5, "head": 9})
    assert {f.rule: f.cause for f in ranked}["no-update"] == cause


@pytest.mark.parametrize(
    ("role", "causes"),
    [
        ("layers.*.out", {"vanishing-gradient": "", "diffuse-softmax": "vanishing-gradient"}),
        ("(chain)", {"vanishing-gradient": "diffuse-softmax", "diffuse-softmax": ""}),
    ],
)
def test_signals_that_fade_layer_by_layer_leave_nothing_to_select(role, causes):
    fading = finding("vanishing-gradient", site="layers.0.out", role=role)
    found = rank([fading, finding("diffuse-softmax", site="layers.0.attn")])
    assert {f.rule: f.cause for f in found} == causes


@pytest.mark.parametrize(
    ("along", "site", "cause"),
    [
        ("depth", "layers.3", "exploding-gradient"),
        ("depth", "(output):add", "exploding-gradient"),
        ("depth", "other", ""),
        ("time", "layers.3", ""),
    ],
)
def test_what_leaves_a_chain_that_grows_has_next_to_nothing_beside_it(along, site, cause):
    growth = finding("exploding-gradient", site="layers.0", along=along)
    starved = finding("starved-pathway", site=site, edge="head:linear", share=1e-5)
    assert {f.rule: f.cause for f in rank([starved, growth])}["starved-pathway"] == cause


def test_causes_never_go_in_circles():
    rules = "starved-pathway", "diffuse-softmax", "vanishing-gradient", "exploding-gradient"
    some = [
        finding(r, site="layers.0", edge="layers.0:mm", share=1e-9, along="depth", gain=1e-9)
        for r in rules
    ]
    for order in permutations(some):
        causes = [f.cause for f in rank(list(order))]
        assert "" in causes


@pytest.mark.parametrize(
    ("gain", "decades", "cause"), [(1e-3, 4.0, "diffuse-softmax"), (0.02, 8.6, "")]
)
def test_a_softmax_explains_no_more_than_it_takes(gain, decades, cause):
    fading = finding("vanishing-gradient", role="(chain)", decades=decades)
    uniform = finding("diffuse-softmax", gain=gain)
    assert {f.rule: f.cause for f in rank([fading, uniform])}["vanishing-gradient"] == cause
