"""Captions: every source is read, the best comes first, and a bad file never stops a run."""

# ruff: noqa: RUF001

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cart_qdrant.captions.reader import (
    MAX_CHARS,
    RESERVED,
    CaptionReader,
    FileCaptions,
    filename_words,
    from_tags,
    merge_captions,
    segment_captions,
)
from cart_qdrant.captions.tables import to_json
from cart_qdrant.captions.text import clean_text
from cart_qdrant.errors import CaptionError, UsageError
from cart_qdrant.records import Caption, CaptionSource, text_key

SHARED = Path(__file__).parents[4] / "shared" / "data"
MEDIA = {".jpg", ".mp4", ".ogg"}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(base: Path, rel: str, **options: Any) -> tuple[FileCaptions, CaptionReader]:
    options = {"roots": [base], **options}
    reader = CaptionReader(base=base, **options)
    return reader.read(base / rel, rel), reader


def texts(found: FileCaptions, source: CaptionSource | None = None) -> list[str]:
    return [c.text for c in found.captions if source is None or c.source == source]


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.srt", "metadata.csv", "metadata.jsonl"])
def test_caption_files_that_are_links_out_of_the_folders_are_named_and_not_read(
    tmp_path: Path, name: str
) -> None:
    secret = "1\n00:00:00,000 --> 00:00:01,000\nsecret\n" if name == "a.srt" else '"secret"'
    if name.startswith("metadata"):
        columns = "file_name,text\na.jpg,secret\n"
        secret = columns if name.endswith("csv") else '{"file_name": "a.jpg", "text": "secret"}'
    write(tmp_path / "home" / "secret", secret)
    write(tmp_path / "m" / "kept" / name, secret.replace("secret", "open"))
    (tmp_path / "m" / name).symlink_to(tmp_path / "home" / "secret")
    found, reader = read(tmp_path, "m/a.jpg", roots=[tmp_path / "m"])
    assert not any("secret" in text for text in texts(found))
    (remark,) = reader.remarks
    assert remark.path == f"m/{name}" and "--follow" in remark.reason
    followed, reader = read(tmp_path, "m/a.jpg", roots=[tmp_path / "m"], follow=True)
    assert any("secret" in text for text in texts(followed)) and reader.remarks == []
    (tmp_path / "m" / name).unlink()
    (tmp_path / "m" / name).symlink_to(tmp_path / "m" / "kept" / name)
    inside, reader = read(tmp_path, "m/a.jpg", roots=[tmp_path / "m"])
    assert any("open" in text for text in texts(inside)) and reader.remarks == []


HUGE = "9" * 5_000
DEEP = "[" * 50_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", f"file_name,text,n\na.jpg,one,{HUGE}\nb.jpg,two,7\n"),
        ("metadata.csv", f"file_name,text,n\na.jpg,one,{DEEP}\nb.jpg,two,7\n"),
        ("metadata.csv", f"file_name,text,n\na.jpg,one,-{HUGE}.5e{HUGE}\nb.jpg,two,7\n"),
        ("metadata.csv", f"file_name,text,n,caption_{HUGE}\na.jpg,one,x,y\nb.jpg,two,7,\n"),
        ("metadata.csv", f"file_name,text,n\na.jpg,one,[{HUGE}]\nb.jpg,two,7\n"),
        (
            "metadata.jsonl",
            f'{{"file_name": "a.jpg", "n": {HUGE}}}\n{{"file_name": "b.jpg", "n": 7}}',
        ),
        (
            "metadata.jsonl",
            f'{{"file_name": "a.jpg", "n": {DEEP}\n{{"file_name": "b.jpg", "n": 7}}',
        ),
        (
            "metadata.jsonl",
            f'{{"file_name": "a.jpg", "caption_{HUGE}": 1}}\n{{"file_name": "b.jpg", "n": 7}}',
        ),
        ("a.json", f'{{"n": {HUGE}, "caption": "one"}}'),
        ("a.json", DEEP),
        ("a.json", f'{{"caption_{HUGE}": "x"}}'),
        ("a.srt", f"1\n{HUGE}:00:01,0 --> {HUGE}:00:02,0\nwords\n"),
        ("a.srt", f"1\n00:00:01,{HUGE} --> 00:00:02,{HUGE}\nwords\n"),
    ],
)
def test_no_number_and_no_nesting_ends_a_run(tmp_path: Path, name: str, content: str) -> None:
    write(tmp_path / name, content)
    reader = CaptionReader(base=tmp_path, roots=[tmp_path])
    reader.read(tmp_path / "a.jpg", "a.jpg")
    other = reader.read(tmp_path / "b.jpg", "b.jpg")
    if name.startswith("metadata"):
        assert other.meta["n"] == 7, "the rest of the table is read"


def test_numbers_that_a_store_cannot_hold_are_texts_or_nothing(tmp_path: Path) -> None:
    row = f"a.jpg,one,{HUGE},18446744073709551616,1e999,NaN,[1e999]"
    write(tmp_path / "metadata.csv", f"file_name,text,huge,long,far,nan,list\n{row}\n")
    found, reader = read(tmp_path, "a.jpg")
    assert reader.failures == [] and texts(found)[0] == "one"
    assert found.meta["huge"] == HUGE and found.meta["long"] == "18446744073709551616"
    assert found.meta["far"] == "1e999" and found.meta["nan"] == "NaN"
    assert found.meta["list"] == [None]


# --- metadata tables ------------------------------------------------------------------------


def test_jsonl_and_csv_say_the_same(tmp_path: Path) -> None:
    row = {"file_name": "a.jpg", "text": "one", "captions": ["two", "three"], "n": 3, "x": 1.5}
    write(tmp_path / "j/metadata.jsonl", json.dumps(row))
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text", "captions", "n", "x"])
        rows.writerow(["c/a.jpg", "one", '["two", "three"]', "3", "1.5"])
    from_jsonl, _ = read(tmp_path, "j/a.jpg")
    from_csv, _ = read(tmp_path, "c/a.jpg")
    assert texts(from_jsonl) == ["one", "two", "three"]
    assert from_jsonl.meta == {"n": 3, "x": 1.5}
    assert from_csv == from_jsonl


def test_csv_values_are_numbers_only_where_all_of_the_cell_is(tmp_path: Path) -> None:
    cells = {
        "i": "-12", "f": "1e3", "zip": "00123", "date": "2024-01-02", "nan": "nan",
        "list": "[1, 2]", "us": "1_000", "broken": "[1", "empty": "",
    }  # fmt: skip
    write(
        tmp_path / "metadata.csv",
        f"file_name,caption_10,caption_2,{','.join(cells)}\n"
        + "a.jpg,ten,two,"
        + ",".join(f'"{c}"' for c in cells.values()),
    )
    found, reader = read(tmp_path, "a.jpg")
    assert texts(found) == ["two", "ten"]
    kept = {k: v for k, v in cells.items() if v}
    assert found.meta == {**kept, "i": -12, "f": 1000.0, "list": [1, 2]}
    assert reader.failures == []


def test_tables_are_read_up_to_the_root_and_the_nearest_wins(tmp_path: Path) -> None:
    for folder, rel in (("", "r/s/a.jpg"), ("r", "s/a.jpg"), ("r/s", "a.jpg")):
        row = {"file_name": rel, "caption": f"from {folder or 'top'}", "from": folder, folder: 1}
        write(tmp_path / folder / "metadata.jsonl", json.dumps(row))
    found, _ = read(tmp_path, "r/s/a.jpg", roots=[tmp_path / "r"])
    assert texts(found) == ["from r/s", "from r"]
    assert found.meta == {"from": "r/s", "r": 1, "r/s": 1}
    nested, _ = read(tmp_path, "r/s/a.jpg", roots=[tmp_path / "r" / "s", tmp_path])
    assert texts(nested) == ["from r/s", "from r", "from top"]


def test_several_rows_of_a_file_are_joined(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", "file_name,caption\na.jpg,one\na.jpg,two\n./a.jpg,One\n")
    assert texts(read(tmp_path, "a.jpg")[0]) == ["one", "two"]


def test_a_table_is_read_once(tmp_path: Path) -> None:
    table = write(tmp_path / "metadata.jsonl", '{"file_name": "a.jpg", "caption": "before"}')
    reader = CaptionReader(base=tmp_path, roots=[tmp_path])
    first = reader.read(tmp_path / "a.jpg", "a.jpg")
    table.write_text('{"file_name": "a.jpg", "caption": "after"}')
    assert reader.read(tmp_path / "a.jpg", "a.jpg") == first


def test_malformed_lines_are_told_once_with_their_number(tmp_path: Path) -> None:
    good = '{"file_name": "a.jpg", "caption": "good"}'
    bad = ["{", "[1]", '{"name": "a"}', '{"file_name": "a.jpg", "caption": 7}', "[" * 100_000]
    write(tmp_path / "metadata.jsonl", "\n".join([*bad, "", good]))
    found, reader = read(tmp_path, "a.jpg")
    reader.read(tmp_path / "b.jpg", "b.jpg")
    assert texts(found) == ["good"]
    assert [f.path for f in reader.failures] == ["metadata.jsonl"] * len(bad)
    for number, failure in enumerate(reader.failures, 1):
        assert failure.reason.startswith(f"line {number}: ")
    assert "'name'" in reader.failures[2].reason


def test_many_malformed_lines_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "metadata.jsonl", "{\n" * 500)
    _, reader = read(tmp_path, "a.jpg")
    assert len(reader.failures) == 21
    assert reader.failures[-1].reason == "480 more lines cannot be used"


def test_a_csv_without_file_name_or_with_bare_commas_is_told(tmp_path: Path) -> None:
    write(tmp_path / "x/metadata.csv", "file,caption\na.jpg,one\n")
    write(tmp_path / "y/metadata.csv", 'file_name,caption\na.jpg,a, dog\nb.jpg,"x"y\nc.jpg,fine\n')
    _, reader = read(tmp_path, "x/a.jpg")
    assert "the columns are 'file', 'caption'" in reader.failures[0].reason
    found, reader = read(tmp_path, "y/c.jpg")
    assert texts(found) == ["fine"]
    assert [f.reason.split(":")[0] for f in reader.failures] == ["line 2", "line 3"]


def test_reserved_columns_are_prefixed_and_nothing_is_lost(tmp_path: Path) -> None:
    names = sorted(RESERVED - {"captions"})
    row = {"file_name": "a.jpg", **{n: n for n in names}, "meta_path": "own", "cart_7": 7}
    write(tmp_path / "metadata.jsonl", json.dumps(row))
    meta = read(tmp_path, "a.jpg")[0].meta
    assert not set(meta) & RESERVED
    assert meta["meta_path"] == "own" and meta["meta_meta_path"] == "path"
    assert meta["meta_cart_7"] == 7
    assert sorted(map(str, meta.values())) == sorted([*names, "own", "7"])


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=8,
))  # fmt: skip
def test_meta_is_json_that_a_payload_can_hold(value: Any) -> None:
    clean = to_json(value)
    written = json.dumps(clean, allow_nan=False, ensure_ascii=False).encode()  # strict JSON
    assert json.loads(written) == clean
    assert to_json(clean) == clean


def test_integers_beyond_64_bits_become_text() -> None:
    edge = 2**63
    assert to_json([edge - 1, -edge, edge, -edge - 1]) == [
        edge - 1, -edge, str(edge), str(-edge - 1),
    ]  # fmt: skip


# --- files beside the media -----------------------------------------------------------------


def test_sidecars_in_order_of_trust(tmp_path: Path) -> None:
    write(tmp_path / "dog_surfing.mp4", b"")
    write(tmp_path / "metadata.jsonl", '{"file_name": "dog_surfing.mp4", "caption": "meta"}')
    write(tmp_path / "dog_surfing.txt", "txt one\r\n\r\n  txt two \r\n")
    write(tmp_path / "dog_surfing.json", '{"title": "json", "description": "more", "year": 2020}')
    write(tmp_path / "dog_surfing.srt", "1\n00:00:01,000 --> 00:00:02,000\nspoken\n")
    explicit = write(tmp_path / "mine.csv", "file_name,caption\ndog_surfing.mp4,explicit\n")
    found, reader = read(tmp_path, "dog_surfing.mp4", explicit=explicit)
    assert texts(found) == [
        "explicit", "meta", "txt one", "txt two", "json", "more", "spoken", "dog surfing",
    ]  # fmt: skip
    assert [c.source for c in found.captions] == sorted(
        (c.source for c in found.captions), key=list(CaptionSource).index
    )
    assert [c.is_weak for c in found.captions] == [False] * 7 + [True]
    assert found.meta == {"year": 2020}
    assert found.captions[6] == Caption("spoken", CaptionSource.SUBTITLE, 1.0, 2.0)
    assert reader.failures == [] and reader.unused == 0


@pytest.mark.parametrize(
    "name", ["a.srt", "a.vtt", "a.en.srt", "a.pt-BR.vtt", "a.mp4.srt", "a.en.forced.SRT"]
)
def test_names_of_subtitles(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "00:00:01,000 --> 00:00:02,000\nspoken\n")
    found, _ = read(tmp_path, "a.mp4")
    assert texts(found, CaptionSource.SUBTITLE) == ["spoken"]
    other, _ = read(tmp_path, "b.mp4")
    assert other.captions == ()


@pytest.mark.parametrize("name", ["id.3.txt", "id.3.mp4.txt"])
def test_a_name_with_dots_has_its_own_sidecars(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "third")
    assert texts(read(tmp_path, "id.3.mp4")[0], CaptionSource.TXT) == ["third"]
    assert texts(read(tmp_path, "id.4.mp4")[0], CaptionSource.TXT) == []
    assert texts(read(tmp_path, "id.mp4")[0], CaptionSource.TXT) == []


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ({"captions": ["one"], "caption": "two", "text": None}, ["two", "one"]),
        ({"title": "a.jpg", "description": "one"}, ["one"]),
        ([], []),
    ],
)
def test_forms_of_name_json(tmp_path: Path, value: object, wanted: list[str]) -> None:
    write(tmp_path / "a.json", json.dumps(value))
    found, reader = read(tmp_path, "a.jpg")
    assert texts(found) == wanted and reader.failures == []


def test_timed_captions_in_json(tmp_path: Path) -> None:
    items = [{"text": "late", "start": 5, "end": 9.5}, {"text": "always"}, "plain"]
    write(tmp_path / "a.json", json.dumps({"captions": items}))
    captions = read(tmp_path, "a.mp4")[0].captions
    assert [(c.text, c.start, c.end) for c in captions] == [
        ("late", 5.0, 9.5), ("always", None, None), ("plain", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"),
        ("a.json", "7"),
        ("a.json", "[1, 2]"),
        ("a.json", '{"captions": [{"text": "x", "start": 3, "end": 2}]}'),
        ("a.json", '{"captions": [{"text": "x", "start": NaN, "end": 2}]}'),
        ("a.json", '{"x": ' + "[" * 200 + "]" * 200 + "}"),
        ("a.srt", "1\nnow --> later\nspoken\n"),
    ],
)
def test_a_malformed_sidecar_is_told_and_the_rest_is_read(
    tmp_path: Path, name: str, content: str
) -> None:
    write(tmp_path / name, content)
    write(tmp_path / "a.txt", "kept")
    found, reader = read(tmp_path, "a.mp4")
    assert texts(found) == ["kept"]
    assert [f.path for f in reader.failures] == [name]


def test_an_unreadable_sidecar_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    (tmp_path / "metadata.csv").mkdir()
    found, reader = read(tmp_path, "a.mp4")
    assert found.captions == ()
    assert sorted(f.path for f in reader.failures) == ["a.txt", "metadata.csv"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    write(tmp_path / "a.txt", "Ein Mädchen über dem Fluß".encode(encoding))
    assert texts(read(tmp_path, "a.jpg")[0]) == ["Ein Mädchen über dem Fluß"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Маленькая девочка бежит по берегу моря с собакой."),
        ("koi8-r", "Маленькая девочка бежит по берегу моря с собакой."),
        ("cp1253", "Ένα μικρό κορίτσι τρέχει στην παραλία με τον σκύλο."),
        ("shift_jis", "小さな女の子が犬と一緒に浜辺を走っている。"),
        ("gb18030", "一个小女孩和她的狗在海滩上奔跑。"),
        ("euc_kr", "작은 소녀가 개와 함께 해변을 달리고 있다."),
    ],
)
def test_encodings_of_other_scripts(tmp_path: Path, encoding: str, text: str) -> None:
    write(tmp_path / "a.srt", f"1\n00:00:01,000 --> 00:00:02,000\n{text}\n".encode(encoding))
    assert texts(read(tmp_path, "a.mp4")[0]) == [text]


def test_other_names_and_folders_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "._a.txt", "junk")
    write(tmp_path / "sub/a.txt", "other")
    assert read(tmp_path, "a.jpg")[0].captions == ()


# --- digest ---------------------------------------------------------------------------------


def test_the_digest_follows_captions_and_meta_and_nothing_else(tmp_path: Path) -> None:
    def digest(content: dict[str, Any] | None) -> str:
        if content is not None:
            write(tmp_path / "a.json", json.dumps(content))
        return read(tmp_path, "a.jpg")[0].digest

    seen = [
        digest(None),
        digest({"text": "one"}),
        digest({"text": "two"}),
        digest({"text": "two", "n": 1}),
        digest({"text": "two", "n": "1"}),
        digest({"captions": [{"text": "two", "start": 0, "end": 1}], "n": "1"}),
    ]
    assert len(set(seen)) == len(seen)
    assert digest({"n": "1", "text": "two"}) == seen[4]


# --- explicit table -------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "csv", "json list", "json object"])
@pytest.mark.parametrize(
    "name", ["photos/a.jpg", "../data/photos/a.jpg", "a.jpg", "{base}/photos/a.jpg",
             "/another/disk/photos/a.jpg", r"photos\a.jpg"]
)  # fmt: skip
def test_an_explicit_row_is_found_by_base_folder_or_tail(
    tmp_path: Path, form: str, name: str
) -> None:
    base = tmp_path / "data"
    write(base / "photos/a.jpg", b"")
    name = name.format(base=base)
    file = tmp_path / "tables" / f"mine.{form.split()[0]}"
    content = {
        "jsonl": json.dumps({"file_name": name, "caption": "mine"}),
        "csv": f"file_name,caption\n{name},mine",
        "json list": json.dumps([{"file_name": name, "caption": "mine"}]),
        "json object": json.dumps({name: "mine"}),
    }[form]
    found, reader = read(base, "photos/a.jpg", explicit=write(file, content))
    assert found.captions == (Caption("mine", CaptionSource.EXPLICIT),)
    assert reader.unused == 0 and reader.failures == []
    assert reader.is_sidecar(file)


def test_an_ambiguous_tail_is_used_for_no_file_whatever_the_order(tmp_path: Path) -> None:
    for rel in ("x/a.jpg", "y/a.jpg", "x/b.jpg"):
        write(tmp_path / rel, b"")
    file = write(tmp_path / "t/mine.csv", "file_name,caption\na.jpg,which\nb.jpg,clear\n")
    for order in (("x/a.jpg", "y/a.jpg"), ("y/a.jpg", "x/a.jpg")):
        reader = CaptionReader(base=tmp_path, roots=[tmp_path], explicit=file)
        assert [reader.read(tmp_path / rel, rel).captions for rel in order] == [(), ()]
        assert len(reader.failures) == 1
        assert "x/a.jpg" in reader.failures[0].reason and "y/a.jpg" in reader.failures[0].reason
    assert texts(reader.read(tmp_path / "x/b.jpg", "x/b.jpg")) == ["clear"]
    assert reader.unused == 1


def test_two_rows_that_fit_equally_are_not_used(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", b"")
    rows = {"/disk1/a.jpg": "one", "/disk2/a.jpg": "two"}
    file = write(tmp_path / "t/mine.json", json.dumps(rows))
    found, reader = read(tmp_path, "a.jpg", explicit=file)
    assert found.captions == ()
    assert "/disk1/a.jpg" in reader.failures[0].reason


def test_a_row_goes_to_the_file_that_it_fits_best(tmp_path: Path) -> None:
    for rel in ("a.jpg", "photos/a.jpg"):
        write(tmp_path / rel, b"")
    file = write(tmp_path / "t/mine.json", json.dumps({"/old/photos/a.jpg": "mine"}))
    assert read(tmp_path, "a.jpg", explicit=file)[0].captions == ()
    assert texts(read(tmp_path, "photos/a.jpg", explicit=file)[0]) == ["mine"]


def test_a_tail_is_whole_components(tmp_path: Path) -> None:
    write(tmp_path / "other/ba.jpg", b"")
    file = write(tmp_path / "t/mine.json", json.dumps({"a.jpg": "no", "train/ba.jpg": "no"}))
    assert read(tmp_path, "other/ba.jpg", explicit=file)[0].captions == ()


@pytest.mark.parametrize(
    ("name", "content", "error", "part"),
    [
        ("gone.csv", None, CaptionError, "No such file"),
        ("mine.xlsx", "x", UsageError, "'.xlsx'"),
        ("mine.csv", "", CaptionError, "empty"),
        ("mine.csv", "image,caption\na.jpg,x\n", CaptionError, "'image'"),
        ("mine.json", "{", CaptionError, "no JSON"),
    ],
)
def test_an_unusable_explicit_table_is_an_error(
    tmp_path: Path, name: str, content: str | None, error: type[Exception], part: str
) -> None:
    file = tmp_path / name
    if content is not None:
        write(file, content)
    with pytest.raises(error, match=part):
        CaptionReader(base=tmp_path, roots=[tmp_path], explicit=file)


def test_sidecars_are_no_media(tmp_path: Path) -> None:
    reader = CaptionReader(base=tmp_path, roots=[tmp_path])
    for name in ("metadata.jsonl", "metadata.csv", "a.txt", "a.JSON", "a.en.srt", "a.vtt"):
        assert reader.is_sidecar(tmp_path / name)
    for name in ("a.mp4", "a.txt.jpg", "txt"):
        assert not reader.is_sidecar(tmp_path / name)


# --- merging and segments -------------------------------------------------------------------

CAPTIONS = st.lists(
    st.builds(
        lambda text, source, times: Caption(text, source, *times),
        st.sampled_from(["a dog", "A  Dog", "a cat", "yes"]),
        st.sampled_from(list(CaptionSource)),
        st.one_of(
            st.just((None, None)),
            st.tuples(st.integers(0, 20), st.integers(1, 9)).map(
                lambda t: (float(t[0]), float(t[0] + t[1]))
            ),
        ),
    ),
    max_size=10,
)


@given(CAPTIONS)
def test_merging_keeps_every_text_and_moment_once(captions: list[Caption]) -> None:
    merged = merge_captions(captions)
    assert merge_captions(merged) == merged
    assert {text_key(c.text) for c in merged} == {text_key(c.text) for c in captions}
    ranks = [list(CaptionSource).index(c.source) for c in merged]
    assert ranks == sorted(ranks)
    for half in range(60):
        moment = half / 2 + 0.25
        before = {text_key(c.text) for c in captions if c.covers(moment, moment)}
        assert before <= {text_key(c.text) for c in merged if c.covers(moment, moment)}


def test_a_caption_between_two_equal_ones_joins_all_three() -> None:
    spans = [(0.0, 2.0), (5.0, 8.0), (1.9, 5.1), (9.0, 10.0)]
    captions = [Caption("yes", CaptionSource.SUBTITLE, *span) for span in spans]
    merged = merge_captions(captions)
    assert [(c.start, c.end) for c in merged] == [(0.0, 8.0), (9.0, 10.0)]


def test_rolling_subtitles_with_a_tiny_gap_are_one_caption() -> None:
    captions = [Caption("yes", CaptionSource.SUBTITLE, n * 2.0, n * 2 + 1.9) for n in range(3)]
    assert merge_captions(captions) == (Caption("yes", CaptionSource.SUBTITLE, 0.0, 5.9),)


def test_a_text_known_without_times_is_not_kept_with_times_too() -> None:
    timed = Caption("Yes", CaptionSource.EXPLICIT, 0.0, 1.0)
    untimed = Caption("yes", CaptionSource.TXT)
    assert merge_captions([timed, untimed]) == (untimed,)


@given(CAPTIONS, st.integers(0, 20), st.integers(1, 9), st.integers(0, 5))
def test_segments_get_what_covers_them_best_first(
    captions: list[Caption], start: int, length: int, limit: int
) -> None:
    end = start + length
    everything = segment_captions(captions, start, end, limit=100)
    keys = [text_key(c.text) for c in everything]
    assert len(keys) == len(set(keys))
    assert set(keys) == {text_key(c.text) for c in captions if c.covers(start, end)}
    assert [c.is_weak for c in everything] == sorted(c.is_weak for c in everything)
    assert segment_captions(captions, start, end, limit=limit) == everything[:limit]


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="-1"):
        segment_captions([], 0, 1, limit=-1)


@given(st.text(max_size=60) | st.text("a b", min_size=990, max_size=1100))
@example("a" * (MAX_CHARS + 1))
@example("a " * MAX_CHARS)
def test_clean_text_is_idempotent_and_bounded(text: str) -> None:
    clean = clean_text(text)
    assert clean_text(clean) == clean
    assert len(clean) <= MAX_CHARS
    assert clean == " ".join(clean.split())
    clean.encode()


# --- tags and names -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "noise",
    [
        "Lavf58.29.100", "HandBrake 1.3.3 2020061300", "x264 - core 155", "https://youtu.be/xyz",
        "www.example.org", "IMG_1234.MOV", "Created by ImageMagick", "OLYMPUS DIGITAL CAMERA",
        "untitled", "Track 01", "...", "", "VideoHandler", "vid:v12044gd0000", "oKQnD2aawvI",
    ],
)  # fmt: skip
def test_tags_that_say_nothing_are_dropped(noise: str) -> None:
    assert from_tags({"title": noise, "COMMENT": noise, "description": noise}) == []


def test_tags_are_captions_of_the_container() -> None:
    tags = {"Title": "A dog surfs", "comment": "a  DOG surfs", "DESCRIPTION": "Filmed in Spain",
            "encoder": "A fine encoder", "artist": "Somebody"}  # fmt: skip
    assert from_tags(tags) == [
        Caption("A dog surfs", CaptionSource.CONTAINER),
        Caption("Filmed in Spain", CaptionSource.CONTAINER),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dog_surfing.mp4", "dog surfing"),
        ("DogSurfing-02.mp4", "dog surfing"),
        ("Dog_Surfing.mp4", "dog surfing"),
        ("big dog (2).jpg", "big dog"),
        ("dog2.jpg", "dog"),
        ("sfx_mixed_scratch_Human_PartyNoise.ogg", "mixed scratch human party noise"),
        ("horn-signals_horn-7.ogg", "horn signals"),
        ("2019-07-04 fireworks 1080p.mp4", "fireworks"),
        ("dog's life.mp4", "dog's life"),
        ("été_à_la_mer.jpg", "été la mer"),
        ("собака.jpg", "собака"),
        ("富士山.jpg", "富士山"),
        ("IMG_1234.jpg", None),
        ("DSC0001.jpg", None),
        ("VID_20200101_101010.mp4", None),
        ("PXL_20210101_101010123.MP.jpg", None),
        ("Screenshot 2021-01-01 at 10.11.12.png", None),
        ("Screen Shot 2021-01-01 at 10.11.12.png", None),
        ("WhatsApp Image 2020-01-01 at 10.10.10.jpg", None),
        ("1000268201_693b08cb0e.jpg", None),
        ("f47ac10b-58cc-4372-a567-0e02b2c3d479.jpg", None),
        ("esc10_1-110389-A.ogg", None),
        ("oKQnD2aawvI.13.mp4", None),
        ("C_7tn_oGHI0.432.mp4", None),
        ("a.jpg", None),
        ("xyzzzt.jpg", "xyzzzt"),
        ("brrr.jpg", None),
    ],
)
def test_words_of_a_name(name: str, words: str | None) -> None:
    assert filename_words(Path(name)) == words


@given(st.text(min_size=1, max_size=40).filter(lambda t: "/" not in t and "\0" not in t))
def test_words_of_any_name_are_plain(name: str) -> None:
    words = filename_words(Path("x" + name))
    if words is not None:
        assert any(len(word) >= 2 for word in words.split())
        assert not any(c.isdecimal() for c in words if c.isascii())
        assert words == " ".join(dict.fromkeys(words.split()))


@pytest.mark.media
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_the_shared_corpus() -> None:
    reader = CaptionReader(base=SHARED, roots=[SHARED])
    found = {
        path: reader.read(path, path.relative_to(SHARED).as_posix())
        for path in sorted(SHARED.glob("*/*"))
        if path.suffix in MEDIA
    }
    assert reader.failures == []
    assert all(any(not c.is_weak for c in f.captions) for f in found.values())
    weak = {path for path, f in found.items() if any(c.is_weak for c in f.captions)}
    names = {path for path in found if path.name.startswith(("sfx_", "audiocaps_"))}
    # A name that repeats a caption is not kept twice.
    assert weak <= names and len(weak) > 0.9 * len(names)
    photo = next(path for path in found if path.suffix == ".jpg")
    assert len(found[photo].captions) == 5 and found[photo].meta["split"] in ("train", "dev")
