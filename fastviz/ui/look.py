"""How the page looks: system fonts only, one palette, light and dark; the scripts and styles in web/, inlined."""

from pathlib import Path

import gradio as gr

WEB = Path(__file__).parent / "web"
SCRIPTS = ("dom.js", "cards.js", "slider.js", "table.js", "scatter.js", "recipe.js", "inside.js", "why.js", "sweep.js", "history.js",
           "draw.js", "formulas.js", "charts.js", "learn.js", "languages.js", "lost.js", "page.js")
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def theme():
    """Plain strings as fonts: Gradio fetches nothing for them."""
    return gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONO,
                          spacing_size="md", radius_size="md", text_size="md")


def styles():
    return "\n".join((WEB / name).read_text() for name in ("page.css", "draw.css", "learn.css"))


def head():
    """All scripts in one element, before the page's components start."""
    return "<script>\n" + "\n".join((WEB / name).read_text() for name in SCRIPTS) + "\n</script>"
