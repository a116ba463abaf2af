from __future__ import annotations

from pathlib import Path

from torch_separable.distillation.training_log import append_record, keep_records, read_records


def test_log_is_truncated_to_a_step_and_an_incomplete_line_is_skipped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_records(log) == []
    records = [{"kind": "step", "step": step, "loss": step / 3} for step in range(5)]
    for record in records:
        append_record(log, record)
    with log.open("a") as file:
        file.write('{"kind": "step", "st')
    assert read_records(log) == records
    keep_records(log, 2)
    append_record(log, records[3])
    assert read_records(log) == records[:4]
    keep_records(log, -1)
    assert log.read_text() == ""
