"""The page around a report: one HTML file without script or network, light and dark, for screen, phone and print."""

import re
from collections.abc import Collection, Sequence
from html import escape

from analysis.chart_style import rules, style

WIDE = 12  # columns beyond which a table is set small in print

CSS = """
*{box-sizing:border-box}
html{color-scheme:light dark;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);font:15.5px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,
'DejaVu Sans',sans-serif;-webkit-text-size-adjust:100%}
main,header .inner,nav .inner,footer{max-width:1180px;margin:0 auto;padding:0 24px}
header{padding:44px 0 26px}
.eyebrow{margin:0 0 6px;color:var(--soft);font-size:12.5px;font-weight:600;letter-spacing:.09em;
text-transform:uppercase}
h1{margin:0;font-size:clamp(26px,4vw,38px);line-height:1.15;letter-spacing:-.02em}
.lead{max-width:760px;margin:12px 0 0;color:var(--soft);font-size:17px}
.lead strong{color:var(--ink)}
nav{position:sticky;top:0;z-index:2;background:var(--page);border-bottom:1px solid var(--grid)}
nav .inner{display:flex;gap:22px;overflow-x:auto;white-space:nowrap}
nav a{padding:11px 0;color:var(--soft);font-size:14px;text-decoration:none}
nav a:hover{color:var(--ink)}
a{color:var(--s0)}
:focus-visible{outline:2px solid var(--s0);outline-offset:2px;border-radius:3px}
section{padding:36px 0 6px;scroll-margin-top:44px}
h2{margin:0 0 4px;font-size:22px;letter-spacing:-.01em}
h2+p{margin:0 0 18px;color:var(--soft);max-width:780px}
h3{margin:22px 0 8px;font-size:15.5px}
.card{min-width:0;margin:0 0 18px;padding:18px 20px;background:var(--surface);border:1px solid var(--grid);
border-radius:12px}
.card>h3:first-child{margin-top:0}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,210px),1fr));gap:14px;margin:24px 0 0}
.tile{padding:14px 18px 16px;background:var(--surface);border:1px solid var(--grid);border-top:4px solid var(--tone);
border-radius:10px}
.tile .what{color:var(--soft);font-size:13px}
.tile .value{margin-top:2px;font-size:31px;font-weight:650;letter-spacing:-.02em;line-height:1.2}
.tile .note{color:var(--soft);font-size:13px}
.scroll,.maps{overflow-x:auto;background:linear-gradient(90deg,var(--surface) 40%,transparent) 0 0/30px 100% local,
linear-gradient(270deg,var(--surface) 40%,transparent) 100% 0/30px 100% local,
linear-gradient(90deg,var(--edge),transparent) 0 0/10px 100%,
linear-gradient(270deg,var(--edge),transparent) 100% 0/10px 100%;background-repeat:no-repeat}
.scroll:focus-visible{outline-offset:4px}
.scroll svg.chart{display:block;max-width:100%;height:auto;min-width:min(100%,560px)}
.maps{display:flex;gap:12px;padding-bottom:4px}
.maps svg.chart{flex:0 1 auto;min-width:300px;height:auto}
.maps.own svg.chart{flex:0 0 auto;min-width:0}
figure{margin:0}
figcaption{margin-top:8px;color:var(--soft);font-size:13.5px;max-width:820px}
ul.legend{display:flex;flex-wrap:wrap;gap:4px 20px;margin:0 0 10px;padding:0;list-style:none;font-size:13.5px}
ul.legend svg{margin-right:7px;vertical-align:-1px}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:6px 14px 6px 0;border-bottom:1px solid var(--grid);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
td.text,th.text{text-align:left}
.asked{white-space:normal;min-width:260px}
thead th{color:var(--soft);font-weight:600;font-size:13px}
tr.target td{font-weight:650}
details{margin-top:12px;font-size:14px}
summary{cursor:pointer;color:var(--soft)}
summary:hover{color:var(--ink)}
details .scroll{max-height:420px;overflow:auto;margin-top:8px}
.pill{display:inline-block;padding:1px 9px;border-radius:99px;font-size:12.5px;font-weight:600;
background:color-mix(in srgb,var(--tone) 16%,transparent);color:var(--ink);border:1px solid var(--tone)}
figure+.scroll{margin-top:14px}
.interval{color:var(--soft);font-size:12.5px}
.hint{margin:8px 0 0;color:var(--soft);font-size:13.5px;max-width:820px}
h4{margin:16px 0 6px;font-size:14px}
.cases{display:flex;flex-wrap:wrap;gap:10px}
.case{display:flex;flex-direction:column;gap:2px;width:88px;font-size:12px;line-height:1.35;break-inside:avoid}
.case img{border-radius:6px}
.case code{font-size:10.5px;color:var(--soft)}
.sheet{display:block;max-width:100%;height:auto}
.warning{margin:22px 0 0;padding:13px 18px;border:1px solid var(--s1);border-left:6px solid var(--s1);border-radius:8px;
background:color-mix(in srgb,var(--s1) 11%,var(--surface))}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:0;font-size:14px}
.facts dt{color:var(--soft)}
.facts dd{margin:0;min-width:0;overflow-wrap:anywhere}
.samples{display:grid;grid-template-columns:minmax(64px,max-content) 1fr;gap:8px 14px;align-items:center;
font-size:13.5px}
.samples img{display:block;max-width:100%;height:auto;border-radius:6px;background:#fff}
.bar{display:flex;height:12px;border-radius:6px;overflow:hidden;gap:2px;min-width:160px}
.counts{margin-top:3px;color:var(--soft);font-size:12.5px;white-space:normal;text-align:left;min-width:160px}
.bar i{display:block;min-width:2px}
code{font:12.5px/1.4 ui-monospace,'SF Mono',Menlo,'DejaVu Sans Mono',monospace;overflow-wrap:anywhere}
footer{padding-top:30px;padding-bottom:48px;color:var(--soft);font-size:13px}
/* Shrunk to a phone, a chart of 1080 px has letters of 3: there it keeps its size and scrolls. */
@media screen and (max-width:900px){.scroll svg.chart{max-width:none;min-width:0}}
@media (max-width:640px){main,header .inner,nav .inner,footer{padding:0 14px}header{padding:26px 0 18px}
.card{padding:14px}.facts{grid-template-columns:1fr}.facts dd{margin-bottom:6px}.samples{grid-template-columns:1fr}}
@media print{@page{margin:11mm}
nav{display:none}header{padding:0 0 8px}main,header .inner,footer{padding:0}
body{font-size:10.5pt;background:#fff}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.card{padding:10px 12px;-webkit-box-decoration-break:clone;box-decoration-break:clone}
.card,.tile{border-color:#ccc;border-top-color:var(--tone,#ccc)}
.tile,figure,tr,ul.legend,.samples,.grid2{break-inside:avoid}
h2,h2+p,h3,h4,.legend,.eyebrow,summary{break-after:avoid;break-inside:avoid}h2+p{max-width:none}
section{padding-top:14px}.scroll,.maps,details .scroll{overflow:visible;max-height:none;background:none}
details::details-content{content-visibility:visible;block-size:auto;height:auto}summary{list-style:none}
table{font-size:8pt;max-width:100%}.interval{font-size:7.5pt}thead{display:table-header-group}
th,td{padding:2px 7px 2px 0;white-space:normal}
thead th{font-size:inherit}table.wide{font-size:6pt}table.wide th,table.wide td{padding:1px 3px 1px 0}
table.wide thead th+th{writing-mode:vertical-rl;padding:3px 0;text-align:left}
.scroll svg.chart{min-width:0;max-height:250mm}.maps svg.chart{flex:0 1 32%;min-width:0}.maps.own{flex-wrap:wrap}
.samples img{max-width:100%}.hint,figcaption{max-width:none}}
"""


def page(title: str, head: str, sections: Sequence[tuple[str, str, str]], foot: str) -> str:
    """The whole document: `head` above, then (anchor, name for the navigation, HTML) a section."""
    dark = style("dark") + ":root{--page:#0f1115;--edge:#0009}"
    light = style("light") + ":root{--page:#f6f7f9;--edge:#0002}"
    css = f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}{CSS}{rules()}"
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in sections)
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">{html}</section>' for anchor, _, html in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{css}</style></head><body>\n'
        f'<header><div class="inner">{head}</div></header>\n'
        f'<nav aria-label="Sections"><div class="inner">{links}</div></nav>\n'
        f"<main>{body}</main>\n<footer>{foot}</footer></body></html>\n"
    )


def heading(anchor: str, title: str, about: str) -> str:
    """Title of a section and the sentence that says how to read it."""
    return f'<h2 id="{anchor}-title">{escape(title)}</h2><p>{about}</p>'


def html_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, marked: Collection[int] = (), text_columns: int = 1
) -> str:
    """A table; cells are HTML. `marked` are the rows that matter; the first columns are text."""
    kinds = ["text" if i < text_columns else "" for i in range(len(head))]

    def row(cells: Sequence[str], tag: str, scope: str) -> str:
        return "".join(
            f"<{tag}{scope}{f' class={kind}' if kind else ''}>{cell}</{tag}>"
            for cell, kind in zip(cells, kinds, strict=True)
        )

    body = "".join(
        f"<tr{' class=target' if i in marked else ''}>{row(cells, 'td', '')}</tr>" for i, cells in enumerate(rows)
    )
    top = f"<thead><tr>{row(head, 'th', ' scope=col')}</tr></thead>"
    wide = " class=wide" if len(head) > WIDE else ""
    label = escape(re.sub("<[^>]*>", "", f"table: {', '.join(head[:6])}{', …' if len(head) > 6 else ''}"), quote=True)
    inside = f"<table{wide}>{top}<tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{inside}</div>'


def details(summary: str, html: str) -> str:
    """Something to unfold: the values behind a figure."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def chart(svg: str, caption: str = "") -> str:
    """A chart with its caption, which scrolls by itself in a narrow window."""
    note = f"<figcaption>{caption}</figcaption>" if caption else ""
    named = re.search('aria-label="([^"]*)"', svg)
    label = f"chart: {named[1]}" if named else "chart"
    return f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{label}">{svg}</div>{note}</figure>'
