"""The report of a run whose every number is known, read back with html.parser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from clapforget.errors import UserError
from clapforget.report import build_report
from clapforget.report.plots import curve, dots, lines

EVIL = "<script>alert(1)</script>"
NAMES = [EVIL, "$\\frac", 'a"b', "d&e", "naïve 犬", *(f"name{i}" for i in range(5, 12))]
# kind, classes, text: two classes are forgotten, one of them is learned again
STREAM = [
    ("learn", [0, 1, 2, 3], "L0-3"),
    ("learn", [4, 5, 6, 7], "L4-7"),
    ("forget", [1], "F1"),
    ("forget", [5, 6], "F5,6"),
    ("learn", [8, 9, 5], "L8,9,5"),
]
VERDICTS = ["forgotten", "damaged"]
EVIDENCE = ["forget_accuracy", "probe_auc", "nats"]


def strategy(event: int, label: int) -> float:
    return ((7 * event + 13 * label) % 89) / 97


def clip(event: int, label: int) -> float:
    return ((5 * event + 11 * label + 3) % 83) / 91


def certificate(index: int) -> dict:
    return {
        "request": {"text": STREAM[2 + index][2], "classes": STREAM[2 + index][1]},
        "event": 2 + index,
        "verdict": VERDICTS[index],
        "rule": "the rule <b>",
        "weakest": f"weak {index}",
        "claim": f"claim {index}",
        "not_tested": ["four bits"],
        "weights": {
            "before": {"image": "aa", "text": "bb"},
            "after": {"image": "aa", "text": "cc"},
        },
        "evidence": [
            {"name": "forget_accuracy", "title": "Accuracy on it", "group": "clip",
             "before": 0.913, "value": 0.0213, "interval": [0.004, 0.0567], "reference": 0.01,
             "direction": "low", "n": 400, "holds": True},
            {"name": "probe_auc", "group": "twin", "value": 0.5432, "reference": 0.5,
             "direction": "equal", "holds": False},
            {"name": "nats", "group": "posterior", "value": None, "holds": None},
        ],
        "scores": {"entropy": {"before": {"forget": [0, 1, 2, 3, 4], "retain": None},
                               "after": {"forget": [1, 2, 3, 4, 5], "unseen": [1, 2]}}},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of five experiences over twelve classes."""
    (tmp_path / "certificates").mkdir()
    known: dict[int, None] = {}
    gone: list[int] = []
    records = []
    for i, (kind, classes, text) in enumerate(STREAM):
        if kind == "learn":
            known |= dict.fromkeys(classes)
            gone = [c for c in gone if c not in classes]
        else:
            gone += classes
        metrics = {"retain_accuracy": 0.8, "ece": 0.01 * i, "zero_shot_retain_accuracy": None}
        records.append({
            "event": i, "kind": kind, "text": text, "classes": classes,
            "names": [NAMES[c] for c in classes], "seconds": 75.0, "forgotten": list(gone),
            "metrics": metrics,
            "accuracy": {"strategy": {str(c): strategy(i, c) for c in known},
                         "clip": {str(c): clip(i, c) for c in range(12)}},
            "forget": {"forgetter": "slug", "losses": {EVIL: [3.0, None, 1.0]}}
            if kind == "forget" else None,
        })  # fmt: skip
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    config = {"scenario": EVIL, "class_names": NAMES, "settings": {"memory": {"size": 200}},
              "data": 'https://example.org/"x', "class_order": [3, 1]}  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    listed = []
    for index in range(2):
        file = f"certificates/{index:03d}.json"
        (tmp_path / file).write_text(json.dumps(certificate(index)))
        listed.append({"verdict": VERDICTS[index], "certificate": file})
    summary = {"retain_accuracy": 0.8731, "forget_accuracy": None, "bystander_accuracy": 0.981,
               "ece": 0.0427, "spill": -0.0125, "relapse": 0.004, "requests": listed,
               "before": {"zero_shot_retain_accuracy": 0.61, "bystander_accuracy": 0.986},
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


VOID = {"meta", "link", "img", "br", "path", "circle", "rect", "use", "input", "hr"}


class Page(HTMLParser):
    """Balanced tags, the table cells of each table by class or id, all attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[str] = []
        self.text = ""
        self._table: list[list[str]] | None = None
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            key = given.get("class") or given.get("id") or ""
            self._table = self.tables.setdefault(key, [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
            if self._table and self._table[-1] and self.open[-1] not in ("tr", "tbody", "table"):
                self._table[-1][-1] += data

    def row(self, table: str, start: str) -> list[str]:
        found = [r for r in self.tables[table] if r and " ".join(r[0].split()).startswith(start)]
        return [" ".join(cell.split()) for cell in found[0]]


def read(folder: Path, **options: object) -> Page:
    path = build_report(folder, **options)  # type: ignore[arg-type]
    assert path == folder / "report.html"
    assert not list(folder.glob(".*"))
    return Page(path.read_text(encoding="utf-8"))


def pictures() -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {c: rng.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8) for c in (1, 2, 5)}


def test_page_is_self_contained_and_safe(folder: Path) -> None:
    page = read(folder, pictures=pictures(), neighbours={1: [2, 3], 5: [1]})
    for tag, key, value in page.attributes:
        if key in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert (value or "").startswith(("#", "data:")), (tag, key, value)
        assert not key.startswith("on"), (tag, key)
    assert not {"script", "iframe", "object", "embed", "b<"} & set(page.tags)
    style = re.findall(r"<style>(.*?)</style>", (folder / "report.html").read_text(), re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0] and "@import" not in style[0]
    assert "prefers-color-scheme: dark" in style[0]
    said = page.text + "".join(v or "" for _, key, v in page.attributes if key == "title")
    for name in NAMES[:10]:
        assert name in said, name
    assert EVIL in page.text
    assert "the rule <b>" in page.text


def test_ids_are_unique_and_links_lead_somewhere(folder: Path) -> None:
    page = read(folder)
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    targets = [v[1:] for _, key, v in page.attributes if key == "href" and v and v[0] == "#"]
    assert targets and set(targets) <= set(ids)
    used = re.findall(r"url\(#([^)]+)\)", (folder / "report.html").read_text())
    assert used and set(used) <= set(ids)


@pytest.mark.parametrize("old", [False, True], ids=["now", "without forgotten"])
def test_matrix_holds_the_means_over_the_right_classes(folder: Path, old: bool) -> None:
    if old:  # what is forgotten follows from the requests
        file = folder / "events.jsonl"
        file.write_text(file.read_text().replace('"forgotten"', '"other"'))
    page = read(folder)
    # by hand: who gives the number, and the classes that count
    both, first = (strategy, [0, 1, 2, 3]), (strategy, [0, 2, 3])
    wanted = {
        "Task 1": [both, both, *[first] * 3],
        "Task 2": [
            (clip, [4, 5, 6, 7]),
            *[(strategy, [4, 5, 6, 7])] * 2,
            (strategy, [4, 7]),
            (strategy, [4, 5, 7]),  # 5 is learned again
        ],
        "Task 3": [*[(clip, [8, 9, 5])] * 3, (clip, [8, 9]), (strategy, [8, 9, 5])],
        "Request 1": [(strategy, [1])] * 5,
        "Request 2": [(clip, [5, 6]), *[(strategy, [5, 6])] * 4],
    }
    for start, cells in wanted.items():
        row = page.row("matrix", start)
        means = [np.mean([source(i, c) for c in cs]) for i, (source, cs) in enumerate(cells)]
        assert row[1:] == [f"{100 * mean:.1f}" for mean in means], start
    light = [
        v for tag, key, v in page.attributes if tag == "td" and key == "class" and "early" in v
    ]
    assert len(light) == 6


def test_verdicts_and_evidence_are_all_there(folder: Path) -> None:
    page = read(folder)
    badges = [v for _, key, v in page.attributes if key == "class" and v and "badge " in v]
    assert {"badge forgotten", "badge damaged"} <= set(badges)
    shown = [v for _, key, v in page.attributes if key == "data-evidence"]
    assert shown == [*("forget_accuracy", "nats", "probe_auc")] * 2
    row = page.row("evidence", "Accuracy on it")
    assert row[1:4] == ["91.3%", "2.1%0.4 to 5.7%", "1.0%"]
    assert row[5:] == ["low", "✓ holds"]
    assert page.row("evidence", "probe auc")[2:4] == ["0.543", "0.500"]
    assert page.row("evidence", "probe auc")[5:] == ["like the reference", "✕ fails"]
    assert page.row("evidence", "nats")[1:] == ["–", "–", "–", "–", "–", "not judged"]
    assert page.row("prints", "image") == ["image", "aa", "aa", "unchanged"]
    assert page.row("prints", "text") == ["text", "bb", "cc", "changed"]
    for words in ("weak 1", "claim 0", "four bits", "slug"):
        assert words in page.text
    assert page.text.count("Pictures are not available without the data.") == 2


def test_headline(folder: Path) -> None:
    page = read(folder)
    assert (
        "1 of 2 requests forgotten, 1 damaged; retained classes went from 61.0% zero-shot "
        "to 87.3%; bystanders 98.6% → 98.1%." in page.text
    )
    assert page.row("numbers", "Spill")[1:] == ["–", "−1.2 pts"]
    assert page.row("numbers", "Relapse")[1:] == ["–", "0.4 pts"]
    assert page.row("numbers", "Expected calibration")[1:] == ["–", "4.3%"]
    just_before = np.mean([strategy(1, 1), np.mean([strategy(2, 5), strategy(2, 6)])])
    assert f"just before the requests {100 * just_before:.1f}%" in page.text


def test_pictures_stand_beside_their_accuracies(folder: Path) -> None:
    page = read(folder, pictures=pictures(), neighbours={1: [2, 3], 5: [1]})
    images = [v for tag, key, v in page.attributes if tag == "img" and key == "src"]
    assert len(images) == 4  # 1 and its neighbour 2; 5 and its neighbour 1; no picture of 3 or 6
    assert all(v and v.startswith("data:image/png;base64,") for v in images)
    flat = " ".join(page.text.split())
    old, new = f"{100 * strategy(1, 2):.1f}%", f"{100 * strategy(2, 2):.1f}%"
    assert f'a"b neighbour · class 2 strategy {old} → {new}' in flat
    assert "$\\frac forgotten earlier · class 1" in flat
    assert "Pictures are not available" not in flat


def test_missing_fields_give_dashes(folder: Path) -> None:
    (folder / "events.jsonl").write_text(
        '{}\n{"kind": "forget", "classes": [3], "metrics": null, "accuracy": {"strategy": null}}\n'
        '{"kind": "learn", "classes": "x", "metrics": {"ece": "x"}, "forget": 3, "event": NaN}\n'
    )
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "summary.json").write_text('{"before": [], "requests": [null], "ece": NaN}')
    for damaged in ("{not json", "[]", '{"evidence": [null, 3], "scores": {"x": 1}, "event": 1}'):
        (folder / "certificates" / "000.json").write_text(damaged)
        page = read(folder, pictures={3: np.zeros((2, 2, 3), np.uint8)}, neighbours=None)
        assert page.row("numbers", "Retained classes, strategy")[1:] == ["–", "–"]
        assert page.row("matrix", "Request 1")[1:] == ["–", "–", "–"]
        assert "no verdict" in page.text
        assert "No pictures of these classes." in page.text  # [n, h, w, 3] is what pictures are
        assert "None" not in page.text and "nan" not in page.text


def test_interrupted_run_shows_the_last_experience(folder: Path) -> None:
    (folder / "summary.json").unlink()
    page = read(folder)
    assert "summary.json is missing." in page.text
    assert "Retained classes are at 80.0%".lower() in page.text.lower()
    assert "badge damaged" in [v for _, key, v in page.attributes if key == "class"]
    (folder / "events.jsonl").write_text("")
    assert "No experience was recorded." in read(folder).text


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.yaml", None, "no config.yaml"),
        ("config.yaml", b"a: [", "not YAML"),
        ("config.yaml", b"- 1", "no settings"),
        ("config.yaml", b"\xff\xfe\xff", "cannot read"),
        ("events.jsonl", None, "no events.jsonl"),
        ("events.jsonl", b'{"event": 0}\n{"eve', "line 2"),
        ("events.jsonl", b"[1]\n", "line 1"),
        ("events.jsonl", b"\xff\n", "cannot read"),
    ],
)
def test_damaged_run_is_refused(folder: Path, file: str, content: bytes | None, said: str) -> None:
    (folder / "report.html").write_text("old")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=said):
        build_report(folder)
    assert (folder / "report.html").read_text() == "old"


def test_no_folder() -> None:
    with pytest.raises(UserError, match="not a folder"):
        build_report(Path("nowhere"))


def test_building_twice_gives_the_same_page(folder: Path) -> None:
    first = build_report(folder).read_bytes()
    assert build_report(folder).read_bytes() == first


def test_dots_lie_where_their_values_are() -> None:
    drawn = dots(0.25, (0.2, 0.3), 1.0, 0.5, None)
    centres = {key: float(x) for x, key in re.findall(r'cx="([\d.]+)"[^>]*class="(\w+)"', drawn)}
    reference = float(re.findall(r'M([\d.]+) 3V25" class="reference', drawn)[0])
    assert reference - centres["after"] == pytest.approx(0.25 * 154)
    assert centres["before"] - reference == pytest.approx(0.5 * 154)
    assert dots(None, None, None, None, None) == ""
    assert dots(0.0, None, None, 0.0, None, zoom=True)  # one value: no scale, no crash


def test_a_curve_below_zero_is_drawn_the_right_way_up() -> None:
    """Spill may be negative: forgetting that helped the others."""
    heights = []
    for values in ([-0.01, -0.02], [0.01, 0.02], [0.0, 0.0]):
        plot = curve(values, "spill", percent=True)
        line = re.search(r'd="M 58[.\d]+ ([.\d]+)\s+L 242[.\d]+ ([.\d]+)', plot)
        assert line is not None
        first, second = map(float, line.groups())
        heights.append(second - first)
        assert 0 < first < 120
    assert heights[0] > 20  # downwards
    assert heights[1] < -20
    assert heights[2] == 0
    for nothing in ([], [None, None]):
        assert "<svg" in curve(nothing, "spill", percent=True)


def test_figures_take_their_colours_from_the_page() -> None:
    drawn = lines(["$\\frac$", "b<"], {"retain_accuracy": [0.5, None]}, [1])
    assert "var(--retain, #0072b2)" in drawn and "var(--forget, #c44e00)" in drawn
    assert "b&lt;" in drawn and "http" not in drawn
    assert re.search(r"(?<!, )#[0-9a-f]{6}\b", drawn) is None
    assert len(curve(list(np.random.default_rng(0).random(10_000)), "loss")) < 20_000
