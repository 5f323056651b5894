"""optuna-dashboard's page, which works below any path of a proxy, and for one opening of the database alone."""

from typing import Any

from cifar_sweep.dashboard.access import Answer, WsgiApp, answer_of, answering, sentence
from cifar_sweep.pages import rendered

# In optuna-dashboard's script, where its pages are; `page.js` knows below what.
_ROOT, _BELOW = b'url_prefix:"/dashboard"', b'url_prefix:(window.below||"")+"/dashboard"'
_SCRIPT = b'src="/static/bundle.js"'
_GONE = "another database has taken this one's place since the page was opened; load the page again"


def with_page(app: WsgiApp, opening: str) -> WsgiApp:
    """`app`, whose pages load `page.js` first, and which answers to pages of this `opening`, and to what is no page."""

    def answer(environ: dict[str, Any]) -> Answer:
        place = environ.get("PATH_INFO", "")
        if environ.get("HTTP_X_OPENING", opening) != opening:
            return sentence("410 Gone", _GONE, environ)
        if place in ("", "/"):
            return "302 Found", [("Location", "dashboard/")], b""
        if place == "/static/page.js":
            return "200 OK", [("Content-Type", "text/javascript")], rendered("dashboard", "page.js").encode()
        if place == "/static/bundle.js":
            return _replaced(app, environ, _ROOT, _BELOW)
        if place.startswith("/dashboard"):
            # A page is never the one that a browser has kept: that may be of another opening.
            asked = {name: value for name, value in environ.items() if not name.startswith("HTTP_IF_")}
            up = "../" * (place.count("/") - 1)
            ours = f'src="{up}static/page.js?{opening}"></script><script defer src="{up}static/bundle.js"'
            return _replaced(app, asked, _SCRIPT, ours.encode())
        return answer_of(app, environ)

    return answering(answer)


def _replaced(app: WsgiApp, environ: dict[str, Any], old: bytes, new: bytes) -> Answer:
    """The answer of `app`, in full and not compressed, with something in it replaced."""
    asked = {name: value for name, value in environ.items() if name != "HTTP_RANGE"}
    status, headers, content = answer_of(app, asked | {"HTTP_ACCEPT_ENCODING": "identity"})
    kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
    return status, kept, content.replace(old, new)
