"""Logging: lines for the page, a rotated file, and a disk that fails without reaching the show."""

import logging

from sdbridge import log as logs_module
from sdbridge.log import Logging


def test_lines_reach_the_file_and_the_page(tmp_path):
    with Logging("info", tmp_path, console=False) as logs:
        logging.getLogger("sdbridge.x").info("frame %d", 7)
        assert logs.lines(5)[-1].endswith("frame 7")
    assert "frame 7" in (tmp_path / "sdbridge.log").read_text()


def test_where_there_is_no_terminal_each_message_is_one_line(tmp_path, capsys):
    with Logging("info", tmp_path):
        logging.getLogger("sdbridge.x").warning("SDB-X: %s", "word " * 60)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count("word") == 60


def test_everything_is_put_back(tmp_path):
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with Logging("debug", tmp_path, console=False):
        pass
    assert (root.level, list(root.handlers)) == before


def test_a_folder_that_cannot_be_made_is_told_and_survived(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with Logging("info", blocked / "log", console=False) as logs:
        assert logs.file is None
        assert "SDB-LOG-WRITE" in logs.lines(1)[0]
        logging.getLogger("sdbridge.x").info("frame 7")
    said = capsys.readouterr().err  # the console was not wanted, but nobody else listens
    assert said.count("SDB-LOG-WRITE") == said.count("frame 7") == 1


def test_a_write_that_fails_later_is_told_once(tmp_path, capsys):
    with Logging("info", tmp_path, console=False):
        handler = next(
            h for h in logging.getLogger().handlers if getattr(h, "baseFilename", "").endswith("sdbridge.log")
        )

        class FullDisk:
            def write(self, text: str) -> None:
                raise OSError(28, "No space left on device")

            flush = close = tell = seek = lambda self, *a: 0

        handler.stream = FullDisk()
        for _ in range(3):
            logging.getLogger("sdbridge.x").info("line")
        handler.stream = None
    assert capsys.readouterr().err.count("SDB-LOG-WRITE") == 1


def test_the_file_is_rotated_and_the_oldest_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(logs_module, "LARGEST_FILE", 2000)
    monkeypatch.setattr(logs_module, "FILES_KEPT", 2)
    with Logging("info", tmp_path, console=False):
        for number in range(200):
            logging.getLogger("sdbridge.x").info("a line of the show, number %d", number)
    files = sorted(file.name for file in tmp_path.glob("sdbridge.log*"))
    assert files == ["sdbridge.log", "sdbridge.log.1", "sdbridge.log.2"]
    assert all((tmp_path / name).stat().st_size <= 2000 for name in files)
    assert "number 199" in (tmp_path / "sdbridge.log").read_text()
    assert not any("number 0\n" in (tmp_path / name).read_text() for name in files)
