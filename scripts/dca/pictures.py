"""Pictures as files: an SVG as it is, or as a PNG."""

from __future__ import annotations

from dca.errors import DcaError

SUFFIXES = (".svg", ".png")


def encode(svg: str, suffix: str) -> bytes:
    """The file of a picture.

    Args:
        svg: the picture.
        suffix: of the file, `.svg` or `.png`.

    Raises:
        DcaError: DCA-201 for another suffix, DCA-103 when what turns it into a PNG is not installed.
    """
    require(suffix)
    if suffix == ".svg":
        return svg.encode()
    import cairosvg

    made: bytes = cairosvg.svg2png(bytestring=svg.encode())
    return made


def require(suffix: str) -> None:
    """Refuse what cannot be made, before anything is drawn or measured.

    Raises:
        DcaError: DCA-201, DCA-103.
    """
    if suffix not in SUFFIXES:
        raise DcaError(
            "DCA-201", f"a plot is an .svg or a .png, not `{suffix}`.", remedy="name a file with one of them."
        )
    if suffix == ".png":
        try:
            import cairosvg  # noqa: F401
        except ImportError:
            raise DcaError(
                "DCA-103", "a PNG needs the package cairosvg, which is not installed.",
                remedy="name an .svg file, or install it beside dca: uv pip install cairosvg.",
            ) from None  # fmt: skip
