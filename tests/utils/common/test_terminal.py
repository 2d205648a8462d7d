"""Control characters never reach the terminal: they are written out."""

import logging

import pytest
from rich.console import Console

from benchmarks.attack.names import NAMES
from benchmarks.attack.runner import CONTROL
from model.errors import UserError
from utils.common.commands import command, one_line
from utils.common.terminal import PrintableFormatter, PrintableText, printable


@pytest.mark.parametrize("name", NAMES.values())
def test_what_commands_a_terminal_is_written_out(name):
    assert not CONTROL.search(printable(name))
    assert not CONTROL.search(one_line(UserError(name)))
    assert not CONTROL.search(one_line(FileNotFoundError(2, "No such file", name)))
    if not CONTROL.search(name) and "\r" not in name:
        assert printable(name) == name


def test_words_in_any_script_stay_as_they_are():
    text = "Größe, 犬, كلب, \N{DOG FACE}\tand\nlines"
    assert printable(text) == text


def test_halves_of_characters_are_written_out():
    assert printable("a\udcffb") == "a\\udcffb"


def test_log_messages_are_printable():
    record = logging.LogRecord("a", logging.WARNING, "f", 1, "%s: dropped", ("\x1b[2J",), None)
    assert PrintableFormatter("%(message)s").format(record) == "\\x1b[2J: dropped"


def test_tables_are_printable():
    console = Console(record=True, width=80, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(PrintableText("a\x1b[2J").append("b\x07"))
    assert console.export_text().strip() == "a\\x1b[2Jb\\x07"


def test_the_error_of_a_command_is_printable(capsys):
    @command("a.py")
    def main(argv=None):
        raise UserError("class '\x1b]0;title\x07' is unknown")

    assert main([]) == 2
    assert capsys.readouterr().err == "a.py: class '\\x1b]0;title\\x07' is unknown\n"
