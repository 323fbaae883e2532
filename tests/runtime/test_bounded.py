"""JSON by the letter of its standard."""

import pytest

from deepcluster.runtime.bounded import MAX_JSON, parse_json, read_json


@pytest.mark.parametrize(
    "text",
    ["NaN", "1e999", "9" * 5000, '{"z": 1, "z": 1}', "[" * 200_000, '"\x00"', "\ud800", "{} {}", ""],
)
def test_a_text_that_only_python_takes_for_json_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text.encode(errors="surrogatepass"))


def test_a_file_of_json_has_a_limit_and_may_have_a_mark(tmp_path):
    (file := tmp_path / "a.json").write_text("[1]", "utf-8-sig")
    assert read_json(file) == [1]
    file.write_bytes(b" " * (MAX_JSON - 2) + b"[1]")
    with pytest.raises(ValueError, match=f"{MAX_JSON:,}"):
        read_json(file)
