"""The page of a reproduction, over a folder written by hand: nothing is trained, and every figure is known."""

import json
import re

import numpy as np
import pytest

from builders.drawings import draw
from builders.html_reader import HtmlReader
from voken.errors import DataError
from voken_lab.pages.charts import LabelledPoint, Point, bars, lines, scatter
from voken_lab.reproduction.figure5 import pair_groups
from voken_lab.reproduction.page import write_report
from voken_lab.reproduction.results import MeasuredLine, columns, table_json, table_markdown
from voken_lab.reproduction.tables import TABLES

EVIL = '<script>alert("x")</script> & "quotes"'
MACHINE = {"cpu": "Some <CPU>", "cores": 2, "threads": 1, "python": "3.11", "torch": "2.13", "numpy": "2.4"}


def record(system, recalls, seed=0, *, readout="", beams=12, stored=4.0, speed=50.0, protocol="inductive", **config):
    return {
        "system": system, "dataset": "tiny test", "pool": "one picture per concept", "protocol": protocol,
        "readout": readout, "seed": seed, "beams": beams, "bytes_per_picture": stored, "config": config,
        "cutoffs": [1, 5, 10], "recall": dict(zip(("1", "5", "10"), recalls, strict=True)), "reciprocal_rank": 0.1,
        "sequence_recall": None, "collision_rate": None, "pool_size": 12, "query_count": 24,
        "queries_per_second": speed, "machine": MACHINE,
    }  # fmt: skip


def line(label, inductive, *, paper=None, transductive=(), against=None):
    return {
        "label": label, "the paper says": paper or {}, "inductive": list(inductive), "transductive": list(transductive),
        "compared with": "", "comparison": against,
    }  # fmt: skip


def write(folder, name, value):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def write_table(folder, name, rows, note=""):
    write(
        folder,
        f"{name}.json",
        {"table": name, "title": TABLES[name].title, "track": "tiny", "note": note, "lines": rows},
    )


def against(difference, p):
    cutoff = {"k": 10, "first": 0.5 + difference, "second": 0.5, "bootstrap": {"p_value": p}}
    return {"cutoffs": [cutoff]}


def ours(*recalls, **options):
    return [record("AVG", recall, seed, readout="generate", **options) for seed, recall in enumerate(recalls)]


@pytest.fixture
def folder(tmp_path):
    """All that a run writes, but for what the page does not read."""
    out = tmp_path / "tiny"
    grace = [record("GRACE (structured id)", (0.1, 0.2, 0.3), seed, stored=2.25, speed=20.5) for seed in (0, 1)]
    transductive = [dict(row, protocol="transductive", recall={"1": 0.11, "5": 0.22, "10": 0.33}) for row in grace]
    avg = ours((0.2, 0.4, 0.6), (0.3, 0.5, 0.7), tokenizer={"codebook_size": 256, "levels": 3})
    paper = {"flickr30k": [37.4, 59.5, 66.2]}
    write_table(
        out,
        "table1",
        [
            line("GRACE (structured id)", grace, paper=paper, transductive=transductive, against=against(-0.35, 0.004)),
            line("AVG, generate", avg, paper={"flickr30k": [62.8, 85.4, 91.2]}),
        ],
        note="A note of <the table>.",
    )
    write_table(
        out,
        "table3",
        [
            line("AVG", avg, paper={"flickr30k": [62.3, 83.5, 86.6]}),
            line("without it", ours((0.1, 0.3, 0.45), (0.1, 0.3, 0.55)), against=against(-0.15, 0.2)),
        ],
    )
    sweep = [
        line(f"N = {size}", ours(recall, tokenizer={"codebook_size": size}), paper={"flickr30k": [60.8, 82.0, 84.8]})
        for size, recall in ((256, (0.21, 0.41, 0.61)), (512, (0.22, 0.42, 0.62)))
    ]
    write_table(out, "table4", sweep)
    few = [line("5 beams", ours((0.2, 0.4, 0.99), beams=5)), line("10 beams", ours((0.2, 0.4, 0.5), beams=10))]
    write_table(out, "table7", few)
    speeds = {"AVG, generate": {"1000": 40.0, "10000": 38.0}, "two-tower, exact": {"1000": 800.0, "10000": 200.0}}
    figure = {"figure": "figure4", "title": "Figure 4. Speed", "track": "tiny", "beams": 20, "sizes": [1000, 10000]}
    write(out, "figure4.json", figure | {"queries_per_second": speeds, "machine": MACHINE})
    cost = {
        "protocol": "inductive", "seconds": 7300.0, "processor_seconds": 9000.0, "machine": MACHINE, "voken": "1.2.3",
        "peak_megabytes_of_the_process": 1234.5,
    }  # fmt: skip
    costs = [cost | {"cell": "ours", "seed": seed, "folder": f"seed-{seed}/ours-1"} for seed in (1, 0)]
    costs.append(cost | {"cell": "ours", "seed": 0, "protocol": "transductive", "folder": "seed-0/ours-2"})
    request = {
        "what": ["all"], "track": "tiny", "data": "my <data>", "out": "runs", "images": None, "seeds": [0, 1],
        "quick": True, "transductive": True, "settings": [["tokenizer.levels", "3"]], "cache": None, "checkpoints": "",
    }  # fmt: skip
    written = ["table1", "table3", "table4", "table7", "figure4"]
    absent = {"backbone t5-base": "t5-base: its <weights> are not at hand."}
    write(out, "run.json", {"request": request, "written": written, "costs": costs, "left out": absent})
    for name, shade in (("a", 10), ("b", 90), ("c", 200)):
        draw((shade, 40, 40), "square").save(tmp_path / f"{name}.png")
    sequences = {"a": [1, 2, 3], "b": [1, 2, 4], "c": [5, 6, 7], "gone": [5, 6, 7]}
    captions = {"a": [EVIL, "red square"], "b": ["red square"], "c": ["circle"], "gone": ["circle"]}

    def picture(name):
        return {"id": name, "path": str(tmp_path / f"{name}.png")}

    pictures = [picture(name) | {"captions": captions[name], "vokens": sequences[name]} for name in sequences]
    cell = out / "seed-0" / "ours-1"
    write(cell, "evaluations.json", {})
    write(cell, "sequences.json", {"pictures": pictures})

    def case(text, right, *answers):
        hits = [picture(name) | {"score": -1.5, "vokens": sequences[name]} for name in answers]
        return {"text": text, "relevant": [picture(name) for name in right], "answers": hits}

    cases = [
        case("found first", ["a"], "a", "b"),
        case("found second", ["b", "c"], "gone", "b"),
        case(EVIL, ["c"], "a", "b", "gone"),
        case("no answer", ["gone"]),
    ]
    write(cell, "cases.json", {"cases": cases})
    return out


class Page(HtmlReader):
    """Also the text of each section and of each table cell, by the section's name."""

    def __init__(self, path):
        self.section, self.parts, self.cells, self.rows = "", {}, [], 0
        self.html = path.read_text(encoding="utf-8")
        super().__init__(self.html)

    def handle_starttag(self, tag, attributes):
        super().handle_starttag(tag, attributes)
        if tag == "section":
            self.section = dict(attributes)["aria-labelledby"]
        self.rows += tag == "tr"
        if tag in ("td", "th"):
            self.cells.append([self.rows, self.section, tag, dict(attributes).get("class", ""), ""])

    def handle_data(self, data):
        super().handle_data(data)
        self.parts[self.section] = self.parts.get(self.section, "") + data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data

    def row(self, section, label):
        """Class and text of the cells of a row, its label left out."""
        number = next(cell[0] for cell in self.cells if cell[1] == section and cell[-1] == label)
        return [(kind, text) for row, _, _, kind, text in self.cells if row == number][1:]


@pytest.fixture
def page(folder):
    path = write_report(folder)
    assert path == folder / "index.html"
    return Page(path)


def test_every_section_is_there(page):
    expected = ["about", "table1", "table3", "table4", "table7", "ablations", "sweeps", "figure4"]
    assert [name for name in page.parts if name] == [*expected, "trade-offs", "vokens", "cases"]
    about = page.parts["about"]
    assert "voken reproduce all --track tiny --data 'my <data>' --out runs --seed 0 --seed 1 --quick" in about
    assert "--transductive --set tokenizer.levels=3" in about
    assert "its <weights> are not at hand" in about
    assert "Some <CPU>, 2 cores" in about
    assert "1.2.3" in about
    assert "reproduces nothing" in about
    assert "6 h 05 min" in page.text  # three cells of 7,300 seconds
    assert "7 h 30 min" in about


def test_figures_are_those_of_the_json_and_papers_stand_apart(page):
    row = page.row("table1", "GRACE (structured id)")
    assert ("paper", "37.4 / 59.5 / 66.2") in row
    assert [text for kind, text in row if kind == "inductive"][:4] == [
        "10.0 ± 0.0", "20.0 ± 0.0", "30.0 ± 0.0", "-35.0 (0.004)",
    ]  # fmt: skip
    assert [text for kind, text in row if kind == "transductive"] == ["11.0 ± 0.0 / 22.0 ± 0.0 / 33.0 ± 0.0"]
    assert [text for kind, text in row if kind == "cost"] == ["12", "2.25", "20.5"]
    ours_row = page.row("table1", "AVG, generate")
    assert [text for kind, text in ours_row if kind == "inductive"][:3] == ["25.0 ± 7.1", "45.0 ± 7.1", "65.0 ± 7.1"]
    heads = [(kind, text) for _, name, tag, kind, text in page.cells if (name, tag) == ("table1", "th")]
    assert ("paper", "the paper says") in heads
    assert ("inductive", "measured here, inductive") in heads
    assert ("transductive", "measured here, transductive") in heads
    assert "Pool 12 pictures, 24 queries per seed; seeds 0, 1" in page.parts["table1"]
    assert "A note of <the table>." in page.parts["table1"]
    assert "Not measured: GRACE (numeric id)" in page.parts["table1"]
    # no hit at a rank past the beams, on the page and in the chart
    assert [text for kind, text in page.row("table7", "5 beams") if kind == "inductive"][2] == "–"
    assert "99.0" not in page.text


def test_no_panel_mixes_the_paper_with_what_was_measured(page):
    panels = re.findall(r'<figure class="(paper|measured)-panel">(.*?)</figure>', page.html, re.S)
    assert len(panels) == 6  # two of bars, two of table 4, one of table 7 and one of figure 4
    for kind, html in panels:
        assert ("The paper says" in html) == (kind == "paper")
        assert ("Measured here" in html) == (kind == "measured")
    bars_measured, bars_paper = panels[0][1], panels[1][1]
    assert "65.0 ± 7.1" in bars_measured
    assert "86.6" not in bars_measured
    assert "86.6" in bars_paper
    lines_measured = next(html for kind, html in panels if "codebook entries" in html and kind == "measured")
    assert "R@10: 61.0 at 256, 62.0 at 512" in lines_measured
    assert "84.8" not in lines_measured


def test_every_system_has_a_labelled_point(page):
    labels = [svg["aria-label"] for svg in page.all("svg") if "bytes per picture" in svg.get("aria-label", "")]
    assert labels == [
        "R@10 (%) against bytes stored per picture. bytes per picture (logarithmic). "
        "GRACE (structured id): 30.0 % at 2.25; AVG, generate: 65.0 % at 4"
    ]
    assert "38.0" in [text for _, text in page.row("figure4", "AVG, generate")]


def test_pairs_by_what_they_share(page):
    text = page.parts["vokens"]
    assert text.index("No voken in common") < text.index("All but the last") < text.index("The same sequence")
    assert "The first voken in common, the second not" in text
    assert "There is no such pair." in text
    assert "SHA-256" in text
    assert "1 pair; overlap of the captions’ words 100.0 % on average." in text
    start = page.html.index('id="vokens"')
    assert page.html[start : page.html.index('id="cases"')].count('class="v same"') == 2 * 2 + 2 * 3


def test_right_answers_are_marked_and_missed_ones_shown(page):
    text = page.parts["cases"]
    assert "2 of 4 (50 %) have a right picture among the first five, 1 (25 %) at the first place" in text
    assert "nobody chose them" in text
    html = page.html[page.html.index('id="cases"') :]
    articles = re.findall(r"<article.*?</article>", html, re.S)
    marks = [
        ["missed" if "missed" in kind else "right" if "is-right" in kind else "wrong" for kind in hits]
        for hits in (re.findall(r'<li class="(hit[^"]*)"', article) for article in articles)
    ]
    assert marks == [["right", "wrong"], ["wrong", "right"], ["wrong", "wrong", "wrong", "missed"], ["missed"]]
    assert [article.count("✓</b>") for article in articles] == [1, 1, 0, 0]
    assert "There are no hits." in articles[3]


def test_hostile_captions_are_text_and_nothing_is_fetched(page):
    assert page.all("script") == []
    assert f"“{EVIL}”" in page.parts["cases"]
    assert EVIL in page.parts["vokens"]
    images = page.all("img")
    assert any(image["alt"].startswith(EVIL) for image in images)
    assert all(image["src"].startswith("data:image/") for image in images)
    assert any(image["src"].startswith("data:image/gif") for image in images)  # the picture that is gone
    assert not re.search(r"https?://|//[a-z]", re.sub(r'data:[^"]+', "", page.html))
    assert not re.search(r"url\(|@import|<link|<iframe", page.html)
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_what_is_missing_is_left_out(folder):
    for name in ("run.json", "table3.json", "table4.json", "table7.json", "figure4.json"):
        (folder / name).unlink()
    for path in (folder / "seed-0").rglob("*.json"):
        path.unlink()
    page = Page(write_report(folder))
    assert [name for name in page.parts if name] == ["about", "table1", "trade-offs"]
    assert "has not ended" in page.parts["about"]
    (folder / "table1.json").unlink()
    with pytest.raises(DataError, match="nothing was measured there"):
        write_report(folder)


def test_a_figure_alone_is_a_page(folder):
    for path in folder.glob("table*.json"):
        path.unlink()
    page = Page(write_report(folder))
    assert {"about", "figure4"} <= set(page.parts)
    assert "Some <CPU>" in page.parts["about"]


def test_a_table_of_an_earlier_run_is_said_to_be_and_drawn_nowhere(folder):
    run = json.loads((folder / "run.json").read_text())
    write(folder, "run.json", run | {"written": ["table3"]})
    page = Page(write_report(folder))
    assert "of an earlier run" in page.parts["table4"]
    assert "of an earlier run" not in page.parts["table3"]
    assert "sweeps" not in page.parts
    assert "trade-offs" not in page.parts


def test_a_table_of_an_earlier_version_is_left_out(folder):
    row = line("AVG, generate", ours((0.2, 0.3, 0.4)))
    del row["comparison"]
    write_table(folder, "table6", [row])
    assert 'id="table6"' not in write_report(folder).read_text(encoding="utf-8")


def test_a_row_compared_with_another_says_so_and_is_never_the_bold_one(folder):
    alone = line("plain generator, without voken embeddings", ours((0.1, 0.2, 0.3)))
    tested = line("plain generator, without discriminative loss", ours((0.1, 0.2, 0.3)), against=against(-0.2, 0.01))
    for row in (alone, tested):
        row["compared with"] = "plain generator"
    write_table(folder, "table6", [line("AVG, generate", ours((0.2, 0.3, 0.4))), alone, tested])
    text = write_report(folder).read_text(encoding="utf-8")
    text = text[text.index('id="table6"') :].partition("</section>")[0]
    assert "-20.0 (0.01), to the plain generator" in text
    assert text.count('class="highlight"') == 1


def test_both_renderings_show_the_same_cells(folder):
    saved = json.loads((folder / "table1.json").read_text())
    lines = {line.label: line for line in TABLES["table1"].lines}
    measured = [MeasuredLine(lines["GRACE (structured id)"], tuple(saved["lines"][0]["inductive"]))]
    text = table_markdown(table_json(TABLES["table1"], measured, "tiny"))
    for column in columns(table_json(TABLES["table1"], measured, "tiny")):
        assert f"| {column.cells[0]} |" in text
        assert column.head in text


def test_pairs_do_not_depend_on_captions():
    vokens = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [2, 2, 2], [2, 2, 2]])
    ids = list("abcde")
    groups = pair_groups(ids, [["x"]] * 5, vokens, count=9)
    assert [(group.shared, group.total) for group in groups] == [(0, 6), (1, 2), (2, 1), (3, 1)]
    assert [set(pair) for pair in groups[2].shown] == [{0, 1}]
    assert [set(pair) for pair in groups[3].shown] == [{3, 4}]
    assert all(group.overlap == 1 for group in groups)
    others = pair_groups(ids, [[str(row)] for row in range(5)], vokens, count=9)
    assert [group.shown for group in others] == [group.shown for group in groups]
    assert all(group.overlap == 0 for group in others)
    members = [row for pair in groups[0].shown for row in pair]
    assert len(members) == len(set(members))


def test_short_sequences_have_fewer_groups():
    groups = pair_groups(["a", "b", "c"], [[], [], []], np.array([[1], [1], [2]]))
    assert [(group.shared, group.total, group.overlap) for group in groups] == [(0, 2, 0.0), (1, 1, 0.0)]


def test_labels_of_near_points_do_not_lie_on_each_other():
    marks = [LabelledPoint(f"a system, the {place}", Point(4.0, 50 + place / 10)) for place in range(8)]
    svg = scatter("t", "x", marks).svg
    places = re.findall(r'<text [^>]*text-anchor: (start|end)[^>]* x="([^"]*)" y="([^"]*)"[^>]*>a system', svg)
    assert len(set(places)) == len(places) == 8
    for number, (anchor, x, y) in enumerate(places):
        for other_anchor, other_x, other_y in places[:number]:
            apart = abs(float(x) - float(other_x)) > (90 if anchor == other_anchor else 0)
            assert apart or abs(float(y) - float(other_y)) >= 12


def test_a_chart_of_nothing_or_one_point():
    assert lines("t", "x", {"R@1": []}) is None
    assert scatter("t", "x", []) is None
    assert not re.search("nan|inf", lines("t", "x", {"R@1": [Point(4, 0.0)]}, log=True).svg)
    assert "nothing: 0.0" in bars("t", [("nothing", 0.0, None)]).svg
    assert not re.search("nan|inf", bars("t", [("nothing", 0.0, None)]).svg)


def test_a_chart_is_the_same_in_every_run_and_carries_nothing_of_its_program():
    charts = [bars("t", [("$a$ <b>", 12.5, 0.5)]).svg for _ in range(2)]
    assert charts[0] == charts[1]
    assert "$a$ &lt;b&gt;" in charts[0]
    assert not re.search(r"matplotlib|metadata|#00000|clip-path|http|\d{4}-\d\d-\d\d", charts[0])
