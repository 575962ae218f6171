"""The page as a browser reads it: parsed, not searched for strings."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from gradscope import Run
from gradscope.figures import Evidence
from gradscope.report import write_report
from gradscope.report._page import build
from gradscope.report._render import html
from tests.reference.made_up_runs import broken, hostile, stacked_attention

VOID = {"meta", "link", "img", "source", "br"}


class Document(HTMLParser):
    """Tags, attributes and texts; raises where tags are not properly nested."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, *tags):
        return " ".join(t for tag, t in self.texts if not tags or tag in tags)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Per case: the page's data, the parsed document, the text and the directory."""
    cases = {"two": [stacked_attention(4), broken(4)], "hostile": [hostile()]}
    cases["two"][1].meta |= {
        "status": "recording",
        "ended": "KeyboardInterrupt",
        "errors": ["step 3: softmaxes: Traceback\n  File x\nValueError: odd"],
        "nonfinite": [{"step": 600, "phase": "forward", "operation": "log", "where": "a:log"}],
    }
    made = {}
    for name, runs in cases.items():
        page, path = write_report(runs, tmp_path_factory.mktemp(name) / "report")
        text = path.read_text(encoding="utf-8")
        made[name] = page, Document(text), text, path.parent
    return made


CASES = ("two", "hostile")


@pytest.mark.parametrize("case", CASES)
def test_opens_offline(pages, case):
    _, document, text, _ = pages[case]
    for tag, attributes in document.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            target = attributes.get(name)
            assert target is None or re.match(r"data:|#", target), (tag, name, target)
    assert not document.all("script") and not document.all("iframe")
    assert "@import" not in text and "url(" not in text


@pytest.mark.parametrize("case", CASES)
def test_every_link_leads_somewhere(pages, case):
    _, document, _, _ = pages[case]
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for a in document.all("a")]
    assert links and set(links) <= set(ids)


@pytest.mark.parametrize("case", CASES)
def test_every_figure_has_both_themes_a_size_and_words(pages, case):
    page, document, _, out = pages[case]
    images, sources = document.all("img"), document.all("source")
    own = [v for v in page.findings if not v.shown.missing]
    assert len(page.figures) == len(document.all("figure"))
    assert len(images) == len(sources) == len(own) + len(page.figures)
    drawn = [(f"finding-{v.label}", f"{v.label}: {v.shown.title}") for v in own]
    drawn += [(kind.name, kind.title) for kind in page.figures]
    for image, source, (name, title) in zip(images, sources, drawn, strict=True):
        assert title in image["alt"]
        assert "prefers-color-scheme: dark" in source["media"] and "screen" in source["media"]
        light, dark = image["src"], source["srcset"]
        assert light != dark
        for uri in (light, dark):
            content = base64.b64decode(uri.removeprefix("data:image/webp;base64,"), validate=True)
            assert content[:4] == b"RIFF" and content[8:12] == b"WEBP"
        png = (out / "figures" / f"{name}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        # The page reserves exactly the picture's room, so that nothing jumps while it loads.
        size = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
        assert size == (int(image["width"]), int(image["height"]))
    captions = document.text("figcaption")
    several = len(page.runs) > 1
    for kind in page.figures:
        assert (kind.caption_several if several else kind.caption) in captions


@pytest.mark.parametrize("case", CASES)
def test_says_all_that_the_page_holds(pages, case):
    page, document, _, _ = pages[case]
    text = document.text()
    for view in page.findings:
        assert view.message in text and view.remedy in text and view.finding.site in text
        assert all(name in text and value in text for name, value in view.evidence)
    for name, unit, definition in page.definitions:
        assert name in text and unit in text and definition in text
    for title, reason in page.absent:
        assert title in text and reason in text
    for view in page.runs:
        assert all(fact in text for fact in view.facts) or len(page.runs) > 1
        for o in view.check.outcomes:
            assert o.rule.replace("-", " ") in text
        for title, rows in view.details:
            assert title in text and all(name in text and value in text for name, value in rows)
        assert view.model_text in text and view.ended in text
        assert all(line in text and story in text for line, story in view.errors)
        assert all(sentence in text for sentence in view.nonfinite)
        assert all(unseen[k] in text for unseen in view.unseen for k in ("what", "why"))
    for row in page.checked:
        assert row.says in text and all(reason in text for _, reason in row.outcomes)


def test_evidence_is_open_for_what_is_critical(pages):
    page, document, _, _ = pages["two"]
    own = [v.finding.severity for v in page.findings if not v.shown.missing]
    shown = [a for a in document.all("details") if a.get("class") == "shown"]
    assert ["open" in a for a in shown] == [severity == "critical" for severity in own]
    assert {"critical"} < set(own)


def test_a_finding_without_numbers_says_so_in_its_card(pages):
    page, _, _, _ = pages["two"]
    view = page.findings[0]
    absent = replace(view, shown=Evidence("Nothing to draw: it was not recorded."))
    document = Document(html(replace(page, findings=[absent]), [], {}))
    assert "Nothing to draw: it was not recorded." in document.text("p")


def test_several_runs_are_compared_in_a_table(pages):
    page, document, _, _ = pages["two"]
    assert "Runs compared" in document.text("h2")
    rows = [t.strip() for t in document.text("th").split("  ")]
    assert all(view.run.name in " ".join(rows) for view in page.runs)
    assert "Runs compared" not in pages["hostile"][1].text("h2")


def test_a_run_that_was_cut_off_says_so(pages):
    assert "was cut off" in pages["two"][1].text()
    assert "was cut off" not in pages["hostile"][1].text()


def test_names_from_a_run_are_text_and_nothing_else(pages):
    page, document, text, _ = pages["hostile"]
    assert page.runs[0].run.name == '<b>run & "name"</b>'
    assert {tag for tag, _ in document.tags} <= {
        *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "nav"),
        *("section", "article", "div", "span", "p", "h1", "h2", "h3", "a", "strong", "code"),
        *("dl", "dt", "dd", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "footer"),
        *("figure", "figcaption", "picture", "source", "img", "details", "summary", "pre"),
    }
    assert "<script>" not in text and "49" not in document.text("title")
    shown = document.text()
    for name in ("<em>", "</pre><script>1", "<what>", "<why>", "<error>", "<u>"):
        assert name in shown


def test_a_typical_pair_stays_small(pages):
    assert len(pages["two"][2]) < 1.5e6


def test_runs_that_say_nothing_about_themselves():
    silent = [Run.from_records([(0, "m", "module", "", "grad_norm", 1.0)]) for _ in "ab"]
    document = Document(html(build(silent), [], {}))
    assert document.text("h1") == "run · run"
