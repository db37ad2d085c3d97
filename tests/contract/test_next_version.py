"""N12: the edits of the next version, which only the slow lane runs, fit this one."""

from pathlib import Path

from tests.fakes.next_version import EDITS, ROOT, next_version


def test_n12_the_next_version_can_be_made(tmp_path: Path) -> None:
    made = next_version(tmp_path)
    for file in {edit.file for edit in EDITS}:
        text = (made / file).read_text()
        compile(text, file, "exec")
        assert text != (ROOT / file).read_text()
