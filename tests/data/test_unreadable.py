import json

from virtue_jax.data.unreadable import QUARANTINE, Quarantine


def entry(element):
    return {"element": element, "origin": f"rows.parquet:{element}", "error": "image is truncated"}


def test_a_resumed_run_names_each_element_once(tmp_path):
    assert Quarantine(tmp_path).add([entry(3), entry(5), entry(3)]) == [entry(3), entry(5)]
    with (tmp_path / QUARANTINE).open("a") as file:
        file.write('{"element": 9, "ori')  # killed while writing
    again = Quarantine(tmp_path)
    assert again.add([entry(5), entry(9)]) == [entry(9)]
    assert [json.loads(line)["element"] for line in (tmp_path / QUARANTINE).read_text().splitlines()] == [3, 5, 9]


def test_without_bad_rows_there_is_no_file(tmp_path):
    Quarantine(tmp_path).add([])
    assert not (tmp_path / QUARANTINE).exists()
