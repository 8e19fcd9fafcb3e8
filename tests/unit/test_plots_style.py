"""What stands under every figure, and how figures are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from and_platform.errors import InputError
from and_platform.plots import style


def _under(width: float, text: str) -> str:
    figure, _ = style.new(width=width)
    style.footer(figure, text)
    figure.draw_without_rendering()
    (found,) = [one for one in figure.texts if one.get_text()]
    extent = found.get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1
    return found.get_text()


def test_a_footer_is_broken_between_its_parts_where_the_figure_is_narrow() -> None:
    text = "sample · one-network · recipe 0123456789 · n = 85 held-out clips, 4,608 hidden neurons"
    assert _under(8, text) == text
    assert _under(3.5, text) == "sample · one-network · recipe 0123456789\nn = 85 held-out clips, 4,608 hidden neurons"
    assert _under(8, "sample · one\nand a caution") == "sample · one\nand a caution"


def test_a_figure_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    figure, _ = style.new()
    with pytest.raises(InputError, match="name another"):
        style.save(figure, tmp_path / "file" / "a.png")
    with pytest.raises(InputError, match="end it with"):
        style.save(figure, tmp_path / "a.gif")


def test_a_matplotlibrc_in_the_working_folder_changes_no_figure(tmp_path: Path) -> None:
    """Matplotlib reads one where it starts, before the user's own."""
    code = (
        "import sys\nfrom and_platform.plots import style\n"
        "@style.styled\ndef draw():\n    figure, axes = style.new()\n"
        "    axes[0].plot([1, 2], [3, 4], 'o')\n    axes[0].set_title('title')\n    return figure\n"
        "sys.stdout.buffer.write(style.render(draw(), 'png'))\n"
    )
    drawn = []
    for lines in ("", "lines.markersize: 40\naxes.facecolor: red\ntext.usetex: True\nbackend: module://planted\n"):
        (tmp_path / "matplotlibrc").write_text(lines)
        done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        drawn.append(done.stdout)
    assert drawn[0] == drawn[1]
