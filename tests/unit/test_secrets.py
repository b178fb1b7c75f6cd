"""The search for secrets in logs finds one."""

from __future__ import annotations

from pathlib import Path

from tests.support.hidden import PASSWORD, TOKEN, shown


def test_a_log_with_a_secret_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "flink" / "logs"
    folder.mkdir(parents=True)
    for name, text in (("a.out", TOKEN[::-1]), ("b.log", "nothing")):
        (folder / name).write_text(text)
    assert shown([tmp_path]) == []
    for name, text in (("a.out", f"Bearer {TOKEN}"), ("b.log", f"password={PASSWORD}")):
        (folder / name).write_text(text)
    try:
        assert sorted(shown([tmp_path])) == [str(folder / "a.out"), str(folder / "b.log")]
    finally:
        for path in folder.iterdir():  # the suite's own search comes after this test
            path.unlink()
