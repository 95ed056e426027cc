"""The page's HTML of a fit: how well an adapter decodes by how many pictures it was fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from app.adapters import Fitted

WIDTH, HEIGHT = 600.0, 180.0
WAYS = {"adapter": "Adapter", "ridge": "Ridge regression", "shuffled": "Adapter, pictures shuffled"}


def learning_curve(fitted: Fitted) -> str:
    """As lines and as a table, with what is to be said of them."""
    curve, subject = fitted.curve, escape(fitted.subject)
    top1 = {way: {count: ways[way]["top1"] for count, ways in sorted(curve.rows.items())} for way in WAYS}
    best = max(1e-9, *(share for shares in top1.values() for share in shares.values()))
    counts = sorted(curve.rows)
    lines = "".join(_line(way, {count: share / best for count, share in top1[way].items()}) for way in WAYS)
    lines += _line("chance", dict.fromkeys(counts, curve.chance["top1"] / best))
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("Pictures", *WAYS.values()))
    rows = "".join(_row(count, [top1[way][count] for way in WAYS]) for count in counts)
    legend = "".join(f'<li class="{way}">{name}</li>' for way, name in {**WAYS, "chance": "Chance"}.items())
    notes = "".join(f"<p>{escape(note)}</p>" for note in fitted.notes())
    return (
        f'<section class="fitted" role="status"><p><strong>{subject} is known now:</strong> attach a scan of {subject} '
        f"above and press Generate. Of {curve.held_back} pictures that were set aside, the right one is the nearest "
        'for so many scans:</p><figure class="plot curve" role="img" aria-label="Learning curve, as in the table">'
        f'<p class="numbers top">{best:.0%}</p><svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" preserveAspectRatio="none" '
        f'aria-hidden="true">{lines}</svg><p class="numbers ends"><span>{counts[0]}</span><span>{counts[-1]} pictures'
        f"</span></p><figcaption><ul>{legend}</ul></figcaption></figure>"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{notes}"
        "<p>It is used until the app ends. To have it again, start the app with "
        f"<code>{escape(fitted.flags)}</code></p></section>"
    )


def _line(way: str, shares: Mapping[int, float]) -> str:
    """``shares`` of the plot's height, by how many pictures; a single one goes all the way."""
    first, last = min(shares), max(shares)
    places = [(WIDTH * (count - first) / max(1, last - first), HEIGHT * (1 - share)) for count, share in shares.items()]
    places = [(0.0, places[0][1]), (WIDTH, places[0][1])] if len(places) == 1 else places
    return f'<path class="{way}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'


def _row(count: int, shares: Sequence[float]) -> str:
    cells = "".join(f"<td>{share:.0%}</td>" for share in shares)
    return f'<tr><th scope="row">{count}</th>{cells}</tr>'
