"""Draws the architecture, for light and for dark pages, into ``docs/images``."""

from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 960, 500
LABEL = (
    "Clients send requests to the gateway's Service. Gateways route them to replicas. The operator creates replicas "
    "from ModelDeployments, the autoscaler sets their number, and the indexer records their KV caches in Redis."
)


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of one drawing. ``path`` is that of requests."""

    text: str
    faint: str
    box: str
    edge: str
    path: str
    group: str


PALETTES = {
    "light": Palette("#1f2430", "#5b6475", "#ffffff", "#5c6bc0", "#d9730d", "#f2f4fb"),
    "dark": Palette("#e7eaf3", "#a4adc0", "#2a2f3d", "#9fa8da", "#ffb454", "#1d212b"),
}


class Drawing:
    """Collects the elements of one SVG."""

    def __init__(self, palette: Palette) -> None:
        self.palette = palette
        self.parts: list[str] = []

    def text(self, x: int, y: int, words: str, *, size: int = 14, bold: bool = False, anchor: str = "middle") -> None:
        weight = ' font-weight="600"' if bold else ""
        colour = self.palette.text if bold else self.palette.faint
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(words)}</text>'
        )

    def group(self, x: int, y: int, width: int, height: int, title: str) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="{self.palette.group}"/>'
        )
        self.text(x + 14, y + 22, title, size=13, anchor="start")

    def box(self, x: int, y: int, width: int, height: int, title: str, *lines: str, dashed: bool = False) -> None:
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{self.palette.box}" '
            f'stroke="{self.palette.edge}" stroke-width="1.5"{dash}/>'
        )
        top = y + height // 2 + 5 - 9 * len(lines)
        self.text(x + width // 2, top, title, size=15, bold=True)
        for number, line in enumerate(lines, 1):
            self.text(x + width // 2, top + 18 * number, line, size=12)

    def arrow(self, points: str, words: str = "", at: tuple[int, int] = (0, 0), *, request: bool = False) -> None:
        colour, width, head = (self.palette.path, 3, "request") if request else (self.palette.edge, 1.5, "arrow")
        self.parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" marker-end="url(#{head})"/>'
        )
        if words:
            self.text(*at, words, size=12)

    def svg(self) -> str:
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="{size}" markerHeight="{size}" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
            for name, size, colour in (("arrow", 9, self.palette.edge), ("request", 13, self.palette.path))
        )
        body = "\n  ".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(LABEL)}" font-family="system-ui, sans-serif">\n  <defs>{heads}</defs>\n  {body}\n</svg>\n'
        )


def architecture(palette: Palette) -> str:
    """Returns the drawing: the path of a request in the middle, control above, the index below."""
    drawing = Drawing(palette)
    drawing.group(20, 12, 920, 132, "control plane: what should run")
    drawing.group(20, 168, 920, 150, "data plane: the path of a request")
    drawing.group(20, 342, 920, 140, "KV index: which replica has which prefix cached")
    drawing.box(44, 50, 190, 74, "ModelDeployment", "model, pools, SLO, routing")
    drawing.box(330, 50, 190, 74, "operator", "rollouts, status, repair")
    drawing.box(616, 50, 190, 74, "autoscaler", "SLO at the lowest cost")
    drawing.box(44, 206, 130, 84, "clients", "OpenAI API")
    drawing.box(330, 206, 190, 84, "gateways", "keys, routing, retries", "any number, no leader")
    drawing.box(700, 198, 216, 100, "replicas", "pods with vLLM or SGLang,", "in pools by role and GPU")
    drawing.box(330, 384, 190, 74, "Redis", "optional", dashed=True)
    drawing.box(700, 384, 216, 74, "indexer", "reads engines' KV events")
    drawing.arrow("234,87 326,87", "watches", (280, 78))
    drawing.arrow("174,248 326,248", "Service or Ingress", (250, 238), request=True)
    drawing.arrow("520,248 696,248", "cached prefix, or least cost", (608, 238), request=True)
    drawing.arrow("425,124 425,156 760,156 760,194", "creates and replaces", (520, 150))
    drawing.arrow("806,87 860,87 860,194", "sets the count", (812, 172))
    drawing.arrow("640,124 640,180 500,180 500,202", "reads load and latency", (566, 175))
    drawing.arrow("808,298 808,380", "KV events", (842, 334))
    drawing.arrow("700,421 524,421", "writes", (612, 412))
    drawing.arrow("425,384 425,294", "follow", (448, 334))
    return drawing.svg()


def main() -> None:
    for name, palette in PALETTES.items():
        (ROOT / "docs" / "images" / f"architecture-{name}.svg").write_text(architecture(palette), encoding="utf-8")


if __name__ == "__main__":
    main()
