import pytest

from gradscope.findings import information_bottleneck as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from tests.reference import synthetic as made
from tests.reference.made_up_pathways import cut, probes, ranks, stack_of_cuts


def find(rows, sites=(), cuts=()):
    return apply(rule.RULE, Signals(made.run(rows, sites, {"cuts": list(cuts)})))


def one(*args, **more):
    rows, site, entry = cut(*args, **more)
    return find(rows, [site], [entry])


def test_a_plain_stack():
    (finding,) = find(*stack_of_cuts(4, width=16, latent=512))
    assert (finding.severity, finding.site) == ("warning", "l.0")
    evidence = finding.evidence
    assert (evidence["width"], evidence["ratio"], evidence["places"]) == (16, 0.03125, 3)
    assert evidence["cut"] == ["l.0.content"]
    assert "only 16 numbers per sample pass (l.0.content)" in finding.message
    assert finding.view.sites == ("l.0 → l.1", "l.1 → l.2", "l.2 → l.3")


def test_a_latent_concat_opens_it():
    assert find(*stack_of_cuts(4, width=512, latent=512)) == []


def test_a_transformer_is_no_bottleneck():
    assert one("layers.0.self_attn", "layers.1.self_attn", 320, 640, 640) == []


def test_few_latent_queries_are_no_bottleneck():
    assert one("encode", "process.0", 64 * 32, 2 * 4096 * 32, 2 * 64 * 32) == []


@pytest.mark.parametrize(("entries", "found"), [(1, 0), (2, 1), (6, 0)])
def test_a_choice_between_two_is_not_much_of_one(entries, found):
    rows, site, entry = cut("read", "answer", 64, 768, 64, attended=64)
    rows += made.softmax("answer", [0.5] * 3)
    sites = [site, *made.softmax_sites(["answer"], entries)]
    assert len(find(rows, sites, [entry])) == found


@pytest.mark.parametrize(
    ("sink", "severity"), [("decode.attend#1", "info"), ("answer.attend", "warning")]
)
def test_steps_that_each_answer_ask_anew(sink, severity):
    rows, site, entry = cut("decode.attend", sink, 8, 512, 512)
    (finding,) = find(rows, [site], [entry | {"separate": True}])
    assert finding.severity == severity


def test_latents_of_all_pairs_are_no_measure_of_what_has_to_pass():
    """Graph attention on n nodes has n² latents, and hands on all n values."""
    assert one("0", "1", 20 * 9, 20 * 20 * 9, 20 * 20 * 9, attended=20 * 9) == []
    (finding,) = one("0", "1", 9, 20 * 20 * 9, 20 * 20 * 9, attended=20 * 9)
    assert finding.evidence["ratio"] == 0.05
    assert "0.05 of what is attended over" in finding.message


def test_an_output_is_as_small_as_it_is():
    assert one("(input)", "(output)", 10, 3072, 10, kind="module") == []


def test_a_code_is_narrow_on_purpose():
    (finding,) = one("(input)", "(output)", 4, 64, 64, kind="module", tensors=("encoder",))
    assert finding.severity == "info"
    assert "(encoder)" in finding.message


def test_no_path_at_all_is_not_a_narrow_one():
    assert one("a", "b", 0, 64, 64) == []


def test_it_holds_at_every_step():
    rows, sites, cuts = stack_of_cuts(3)
    (finding,) = find(rows + made.ladder(0.1, steps=50), sites + made.ladder_sites(), cuts)
    assert (finding.first_step, finding.last_step) == (0, 49)


def test_measurements_stand_beside_the_structure():
    rows, sites, cuts = stack_of_cuts(4)
    rank_rows, rank_sites = ranks(4, value=2.0, steps=(0, 200), shape=(32, 64))
    probe_rows, probe_sites = probes(["place"], 0.5, 0.3, steps=(0, 200))
    rows, sites = rows + rank_rows + probe_rows, sites + rank_sites + probe_sites
    (finding,) = find(rows, sites, cuts)
    assert finding.severity == "warning"
    assert finding.evidence["effective_rank"] == 3.0  # of layer 0, at step 200
    assert finding.evidence["rank_capacity"] == 31  # 32 samples span 31 dimensions
    assert finding.evidence["weakest_probe"] == "place"
    assert finding.evidence["probe_accuracy"] == 0.5
    assert finding.evidence["probe_baseline"] == 0.3


@pytest.mark.parametrize(("accuracy", "severity"), [(0.95, "info"), (0.85, "warning")])
def test_what_probes_can_read_does_pass(accuracy, severity):
    rows, sites, cuts = stack_of_cuts(4)
    probe_rows, probe_sites = probes(["place"], accuracy, 0.3)
    assert find(rows + probe_rows, sites + probe_sites, cuts)[0].severity == severity


def test_recordings_without_the_names_of_tensors():
    rows, sites, _ = stack_of_cuts(4)
    assert "pass, 0.031 of" in find(rows, sites)[0].message


def test_without_cuts():
    assert find(made.ladder(1.0)) == Skipped("no cut")


def test_two_sinks_of_one_source_are_two_places():
    parts = [cut("first", sink, 16, 784, 784) for sink in ("left", "right")]
    rows = [r for rows, _, _ in parts for r in rows]
    (finding,) = find(rows, [site for _, site, _ in parts], [entry for _, _, entry in parts])
    assert finding.evidence["places"] == 2
    assert finding.view.sites == ("first → left", "first → right")


def test_the_figure_has_the_limit_in_the_units_of_what_it_draws():
    rows, site, entry = cut("first", "second", 16, 1000, 400, attended=160)
    (finding,) = find(rows, [site], [entry])
    assert finding.evidence["ratio"] == pytest.approx(0.1)
    assert finding.view.metric == "width"
    assert finding.view.thresholds == {"0.15 of what is attended over": 24}
