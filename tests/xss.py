"""Names that a page must show and never run: put into every field that comes from data. Each marks `window.__xss`, opens a dialog, or asks for something outside.

`PAYLOADS` are the names, `FACTS` what is looked at in an open page, `watched` a browser's tab that keeps what happened.
"""
from contextlib import contextmanager
from typing import Any

MARK = "window.__xss=1"
OUTSIDE = "http://outside.invalid"

PAYLOADS: tuple[str, ...] = (
    # script elements, in odd spellings
    f"<script>{MARK}</script>", f"<ScRiPt>{MARK}</sCrIpT>", f"<script >{MARK}</script\t>", f"<scr<script>ipt>{MARK}</scr</script>ipt>", f"<script>{MARK}//", f"<script src={OUTSIDE}/a.js></script>",
    f"<script/x>{MARK}</script>", f"<svg><script>{MARK}</script></svg>", f"<svg><script href={OUTSIDE}/b.js /></svg>",
    # handlers
    f"<img src=x onerror={MARK}>", f"<img src=x onerror=\"{MARK}\"", f"<img/src=x/onerror={MARK}>", f"<IMG SRC=x OnErRoR={MARK}>", f"<svg onload={MARK}>", f"<svg/onload={MARK}//",
    f"<body onload={MARK}>", f"<details open ontoggle={MARK}>", f"<video><source onerror={MARK}></video>", f"<audio src=x onerror={MARK}>", f"<input autofocus onfocus={MARK}>",
    f"<select autofocus onfocus={MARK}></select>", f"<marquee onstart={MARK}>x</marquee>", f"<div onmouseover={MARK} style=position:fixed;inset:0>x</div>", f"<style onload={MARK}></style>",
    f"<svg><animate onbegin={MARK} attributeName=x dur=1s></svg>", f"<svg><a><animate attributeName=href values=javascript:{MARK} /><text x=9 y=9>x</text></a></svg>",
    # out of an attribute, an element, a comment
    f"\"><script>{MARK}</script>", f"'><script>{MARK}</script>", f"\" onmouseover={MARK} x=\"", f"' onfocus={MARK} autofocus x='", f"` onerror={MARK} `", f"</title><script>{MARK}</script>",
    f"</style><script>{MARK}</script>", f"</textarea><img src=x onerror={MARK}>", f"--><script>{MARK}</script><!--", f"</pre></code></td></table><script>{MARK}</script>", f"]]><script>{MARK}</script>",
    # addresses
    f"<a href=javascript:{MARK}>x</a>", f"<a href=\"java\tscript:{MARK}\">x</a>", f"<a href=&#106;avascript:{MARK}>x</a>", f"javascript:{MARK}//", f"<iframe src=javascript:{MARK}></iframe>",
    f"<iframe srcdoc=\"<script>parent.{MARK}</script>\"></iframe>", "<object data=data:text/html;base64,PHNjcmlwdD5wYXJlbnQud2luZG93Ll9feHNzPTE8L3NjcmlwdD4=></object>",
    f"<embed src=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload='{MARK}'/>\">", f"<meta http-equiv=refresh content=\"0;url=javascript:{MARK}\">", f"<base href={OUTSIDE}/>",
    f"<form action=javascript:{MARK}><button>x</button></form>", f"<img src={OUTSIDE}/c.png>", f"<link rel=stylesheet href={OUTSIDE}/d.css>", f"<img srcset={OUTSIDE}/e.png>",
    # style sheets
    f"<style>@import '{OUTSIDE}/f.css';</style>", f"<b style=\"background:url({OUTSIDE}/g.png)\">x</b>", f"<table background={OUTSIDE}/h.png><tr><td>x</table>", "<b style=\"width:expression(window.__xss=1)\">x</b>",
    # Markdown
    f"[x](javascript:{MARK})", f"![x]({OUTSIDE}/i.png)", f"![x\" onerror=\"{MARK}](x)", f"[x](data:text/html,<script>{MARK}</script>)", f"`</code><script>{MARK}</script>`", f"```html\n<script>{MARK}</script>\n```",
    f"<javascript:{MARK}>", f"# <img src=x onerror={MARK}>", f"| a |\n|---|\n| <svg onload={MARK}> |",
    # formulas and MathML
    f"$\\text{{<script>{MARK}</script>}}$", f"$\\text{{<img src=x onerror={MARK}>}}$", f"$\\href{{javascript:{MARK}}}{{x}}$", f"$$\\mathrm{{x}} \\text{{</math><svg onload={MARK}>}}$$", "¤0¤", f"$\\color{{red' onmouseover='{MARK}}}{{x}}$",
    f"<math><mtext><table><mglyph><style><img src=x onerror={MARK}>", f"<math href=javascript:{MARK}><mi>x</mi></math>", f"<math><annotation-xml encoding=text/html><img src=x onerror={MARK}></annotation-xml></math>",
    # entities, templates, odd characters
    f"&lt;script&gt;{MARK}&lt;/script&gt;", f"&#60;img src=x onerror={MARK}&#62;", "{{constructor.constructor('window.__xss=1')()}}", "${window.__xss=1}", "{% raw %}<script>window.__xss=1</script>{% endraw %}", "%(x)s{0}{x!r}",
    f"\u202e<script>{MARK}</script>", f"\ufeff<img src=x onerror={MARK}>", f"\x00<script>{MARK}</script>", f"<\u200bscript>{MARK}</script>", f"\uff1cscript\uff1e{MARK}\uff1c/script\uff1e", f"\x1b[31m<svg onload={MARK}>\x1b[0m",
    f"<noscript><p title=\"</noscript><img src=x onerror={MARK}>\">", f"<template><script>{MARK}</script></template>", f"<xmp><p title=\"</xmp><svg onload={MARK}>\">", "<plaintext>",
)

FACTS = """() => { const all = [...document.querySelectorAll('*')], bad = [];
  for (const e of all) {
    if (['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'BASE', 'FORM', 'LINK', 'STYLE', 'TEMPLATE', 'XMP', 'PLAINTEXT', 'AUDIO', 'VIDEO', 'INPUT', 'ANIMATE'].includes(e.tagName.toUpperCase())
        && !(e.tagName === 'STYLE' && e.parentElement === document.head) && !(e.tagName === 'LINK' && e.getAttribute('href') === 'data:,')) bad.push(e.tagName);
    for (const a of e.attributes) {
      if (/^on/i.test(a.name)) bad.push(e.tagName + ' ' + a.name);
      if (['href', 'src', 'action', 'xlink:href', 'formaction', 'background', 'srcset'].includes(a.name) && /^\\s*(j\\s*a\\s*v\\s*a|vbscript|data:text|data:image.svg)/i.test(a.value)) bad.push(a.name + '=' + a.value.slice(0, 40));
    }
  }
  return {ran: window.__xss === undefined ? 0 : 1, bad}; }"""


@contextmanager
def watched(browser: Any):
    """A tab, and the list of what happened in it that should not: dialogs, requests outside, errors on the console."""
    tab, happened = browser.new_page(), []

    def dialog(box: Any) -> None:
        happened.append(f"dialog {box.message}")
        box.dismiss()

    tab.on("dialog", dialog)
    tab.on("request", lambda request: None if request.url.startswith(("file:", "data:", "about:", "http://127.0.0.1")) else happened.append(f"request {request.url[:80]}"))
    tab.on("console", lambda message: happened.append(f"console {message.text[:120]}") if message.type == "error" else None)
    tab.on("pageerror", lambda error: happened.append(f"error {error}"))
    try:
        yield tab, happened
    finally:
        tab.close()
