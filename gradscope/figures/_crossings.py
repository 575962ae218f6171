"""How many softmaxes the gradient of each layer crossed, and what each crossing costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gradscope.figures import _axes, _sites
from gradscope.figures._bands import bands
from gradscope.figures._figure import Mark, about, figure
from gradscope.figures._grid import grid
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import distinct, plain, shorten, shorten_all
from gradscope.run import Run, Site

LAYERS, LAYERS_OF_SEVERAL = 6, 3
"""Layers with a panel of shares, at most: first, last, and evenly spaced ones between."""
ORDERS = 6
"""Numbers of crossings told apart in the shares; what crossed this many or more is one band."""


@dataclass(frozen=True)
class Parts:
    """One site's gradient by the softmaxes crossed. S steps, K+1 orders.

    Attributes:
        steps: int64 (S,).
        orders: K+1 numbers of softmaxes crossed, ascending.
        open_ended: the last order stands for everything above it, too.
        shares: float64 (S, K+1), ⟨G_k, g⟩/‖g‖²; a row sums to 1.
        norms: float64 (S, K+1), ‖G_k‖.
    """

    site: Site
    steps: np.ndarray
    orders: list[int]
    open_ended: bool
    shares: np.ndarray
    norms: np.ndarray

    @property
    def mixing(self) -> float:
        """Mean over steps of what is not in the largest part: 0 where there is but one."""
        finite = np.abs(self.shares[np.isfinite(self.shares).all(axis=1)])
        return float(np.mean(1 - finite.max(axis=1))) if len(finite) else 0.0


@figure(
    title="Gradient by softmaxes crossed",
    caption=(
        "The gradient of each layer, split exactly by how many attention softmaxes it crossed on "
        "its way from the loss. Bands: the parts' shares of the total over training (the "
        "projection of each part on the sum); they add up to 1, and a band below 0 is a part "
        "that works against the others. Below: the length of each part against the number of "
        "crossings, a line for each layer, at the first and the last step measured; the slope "
        "is what one softmax takes. Layers whose share moves from 0 to ever more crossings "
        "towards the input, while the parts' length falls by decades, learn next to nothing; a "
        "pathway around the softmaxes shows as a wide band of few crossings at every layer. "
        "Parts that are exactly 0 have no point; a gap in "
        "the bands is a step whose gradient was NaN or infinite."
    ),
    caption_several=(
        "A row a run. The gradient of each layer, split exactly by how many attention softmaxes "
        "it crossed on its way from the loss. Bands: the parts' shares of the total over "
        "training (the projection of each part on the sum); they add up to 1, and a band below "
        "0 is a part that works against the others. Right: the length of each part against the "
        "number of crossings, a line for each layer, at the first and the last step measured, on "
        "common axes; the slope is what one softmax takes. A pathway around the softmaxes shows "
        "as a wide band of few crossings at every layer. Parts that are exactly 0 have no point."
    ),
    requires=(("crossing", "projection"), ("crossing", "grad_norm")),
    absent="gradients were not split by softmaxes crossed (ask for it with scope.crossings())",
    shows=(("crossing", "*"),),
)
def crossings(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    marks = about(marks, "crossing")
    layers = ladders([parts(r) for r in runs], marks)
    one = len(runs) == 1
    count = LAYERS if one else LAYERS_OF_SEVERAL
    shown = [spread(found, count) for found in layers]
    top = max((p.orders[-1] for found in layers for p in found), default=0)
    open_ended = any(p.open_ended for found in layers for p in found) or top > ORDERS
    colours = shades(min(top, ORDERS) + 1, theme)
    fig = Figure(figsize=(WIDTH, 5.2 if one else 1.75 * len(runs) + 1.1), layout="constrained")
    shares, profiles = _panels(fig, [max(1, len(s)) for s in shown], one)
    names = distinct([r.name for r in runs])
    limits = _axes.log_limits([p.norms for found in layers for p in found])
    for i in range(len(runs)):
        label = one or i == len(runs) - 1
        _shares(shares[i], shown[i], runs, [m for m in marks if m.run == i], colours, label, theme)
        for end, axes in zip((0, -1), profiles[i], strict=True):
            _profile(axes, layers[i], end, limits, top, label, theme)
            if not one and i:
                axes.set_title("")
        if not one:
            shares[i][0].set_ylabel(plain(shorten(names[i], 20)))
        else:
            shares[i][0].set_ylabel("share of gradient")
            profiles[i][0].set_ylabel("‖Gₖ‖")
    _legend(fig, colours, open_ended, layers, theme)
    return fig


def parts(run: Run) -> list[Parts]:
    """Of every module site, in forward order."""
    shares = grid(run, "crossing", "projection", edges=True)
    norms = grid(run, "crossing", "grad_norm", edges=True)
    steps = np.union1d(shares.steps, norms.steps)
    found = []
    for name in dict.fromkeys([*norms.names, *shares.names]):
        site = run.sites.get(("crossing", name)) or Site(name, "crossing")
        if site.type == "parameter":
            continue
        edges = sorted({e for g in (shares, norms) for e in g.of_site(name).edges}, key=_order)
        tables = []
        for g in (shares, norms):
            own = g.of_site(name)
            table = np.full((len(steps), len(edges)), np.nan)
            rows = np.searchsorted(steps, own.steps)
            for j, edge in enumerate(own.edges):
                table[rows, edges.index(edge)] = own.values[:, j]
            tables.append(table)
        orders = [_order(e) for e in edges]
        found.append(Parts(site, steps, orders, edges[-1].endswith("+"), *tables))
    return found


def _order(edge: str) -> int:
    return int(edge.removesuffix("+"))


def ladders(several: Sequence[Sequence[Parts]], marks: Sequence[Mark] = ()) -> list[list[Parts]]:
    """For each run the sites of one role in layer after layer, the same role where they share one.

    That which a finding is about, if there is one; else the role with the most layers, among
    these the one whose gradient comes by the most different ways, and of those the largest
    tensor: a layer's latent rather than its logits, all of whose gradient crosses its own
    softmax.
    """
    roles = []
    for found in several:
        own: dict[str, list[Parts]] = {}
        for p in found:
            own.setdefault(_sites.role(p.site.name), []).append(p)
        roles.append({n: same for n, same in own.items() if "*" in n and len(same) > 1})
    named = [_sites.role(s) for m in marks for s in m.sites[:1]]
    having = [own for own in roles if own]
    shared = set.intersection(*map(set, having)) if having else set()
    best = next((n for n in named if n in shared), "") or _telling(
        {n: [p for own in having for p in own[n]] for n in shared}
    )
    return [
        own.get(best) or own.get(_telling(own), list(found))
        for own, found in zip(roles, several, strict=True)
    ]


def _telling(roles: dict[str, list[Parts]]) -> str:
    def rank(name: str) -> tuple[int, float, int, int, str]:
        same = roles[name]
        mixing = round(2 * float(np.mean([p.mixing for p in same])), 1)
        return (len(same), mixing, same[0].site.numel, same[0].site.order, name)

    return max(roles, key=rank, default="")


def spread(found: Sequence[Parts], count: int) -> list[Parts]:
    """First, last, and evenly spaced ones between."""
    if len(found) <= count:
        return list(found)
    return [found[i] for i in np.linspace(0, len(found) - 1, count).round().astype(int)]


def shades(count: int, theme: Theme) -> list[str]:
    """Colours of 0, 1, … crossings: brightest for none, ever darker."""
    high, low = (0.88, 0.0) if theme.name == "light" else (0.97, 0.2)
    where = np.linspace(high, low, max(2, count))[:count]
    return [to_hex(c) for c in mpl.colormaps[theme.ramp](where)]


def _panels(
    fig: Figure, counts: Sequence[int], one: bool
) -> tuple[list[list[Axes]], list[list[Axes]]]:
    """Axes of the shares and of the two profiles of each run, on common scales."""
    if one:
        outer = fig.add_gridspec(2, 1, height_ratios=(1, 1.15))
        cells = [(outer[0], outer[1])]
    else:
        outer = fig.add_gridspec(len(counts), 2, width_ratios=(max(counts), 2.2))
        cells = [(outer[i, 0], outer[i, 1]) for i in range(len(counts))]
    shares: list[list[Axes]] = []
    profiles: list[list[Axes]] = []
    for (left, right), count in zip(cells, counts, strict=True):
        for found, cell, n in ((shares, left, count), (profiles, right, 2)):
            inner = GridSpecFromSubplotSpec(1, n, subplot_spec=cell)
            first = found[0][0] if found else None
            row: list[Axes] = []
            for k in range(n):
                like = first or (row[0] if row else None)
                row.append(fig.add_subplot(inner[k], sharex=like, sharey=like))
                row[-1].tick_params(labelleft=k == 0)
            found.append(row)
    return shares, profiles


def _shares(
    row: Sequence[Axes],
    found: Sequence[Parts],
    runs: Sequence[Run],
    marks: Sequence[Mark],
    colours: Sequence[str],
    label: bool,
    theme: Theme,
) -> None:
    steps = np.unique(np.concatenate([r.steps for r in runs]))
    width = (110 if len(runs) == 1 else 72) // max(3, len(row))
    names = shorten_all((p.site.name for p in found), width)
    for axes, p, name in zip(row, found, names, strict=False):
        own = [m for m in marks if p.site.name in (m.site, *m.sites)]
        labels = " ".join(dict.fromkeys(m.label for m in own[:2]))
        colour = theme.severity[_axes.worst(own)] if own else theme.ink
        axes.set_title(plain(f"{labels}  {name}" if labels else name), color=colour, fontsize=9)
        bands(axes, p.steps, _folded(p), colours, theme)
    if not found:
        _axes.say(row[0], "not recorded", theme)
    for axes in row:
        _axes.step_axis(axes, steps, label=label, ticks=3 if len(row) > 3 else 4)
        axes.tick_params(labelbottom=label)
    low, high = row[0].dataLim.intervaly if found else (0.0, 1.0)
    before = row[0].get_ylim()
    low, high = max(-2.0, min(0.0, low, before[0])), min(3.0, max(1.0, high, before[1]))
    row[0].set_ylim(low - 0.02 * (low == 0), high + 0.02 * (high == 1))


def _folded(p: Parts) -> np.ndarray:
    """float64 (S, min(K, ORDERS) + 1): shares by order, the highest orders added up."""
    out = np.zeros((len(p.steps), min(p.orders[-1], ORDERS) + 1))
    for j, order in enumerate(p.orders):
        out[:, min(order, ORDERS)] += p.shares[:, j]
    return out


def _profile(
    axes: Axes,
    found: Sequence[Parts],
    end: int,
    limits: tuple[float, float],
    top: int,
    label: bool,
    theme: Theme,
) -> None:
    ramp = _depth(theme)
    which = "first" if end == 0 else "last"
    axes.set_title(f"{which} step", fontsize=9)
    measured = [p for p in found if np.isfinite(p.norms).all(axis=1).any()]
    if measured:
        # The same step for every layer, so that lines can be compared.
        step = [int(p.steps[np.isfinite(p.norms).all(axis=1)][end]) for p in measured]
        axes.set_title(f"step {step[0]}", fontsize=9)
    else:
        _axes.say(axes, "not recorded", theme)
    for i, p in enumerate(found):
        at = np.flatnonzero(np.isfinite(p.norms).all(axis=1))
        if not len(at):
            continue
        values = p.norms[at[end]]
        shown = np.where(values > 0, values, np.nan)
        colour = ramp(i / max(1, len(found) - 1))
        axes.plot(p.orders, shown, color=colour, marker="o", ms=4.5, lw=1.3)
    _axes.log_axis(axes, "y", limits, ticks=6)
    axes.set_xlim(-0.4, max(top, 1) + 0.4)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(nbins=6, integer=True))
    axes.tick_params(labelbottom=label)
    if label:
        axes.set_xlabel("softmaxes crossed, k")


def _depth(theme: Theme) -> LinearSegmentedColormap:
    """Colours of the layers, another scale than that of the crossings."""
    return LinearSegmentedColormap.from_list("layers", [theme.cycle[1], theme.cycle[0]])


def _legend(
    fig: Figure,
    colours: Sequence[str],
    open_ended: bool,
    layers: Sequence[Sequence[Parts]],
    theme: Theme,
) -> None:
    texts = [str(k) for k in range(len(colours))]
    if open_ended:
        texts[-1] += " or more"
    handles: list[Patch | Line2D] = [Patch(color=c) for c in colours]
    texts = [f"{t} crossed" if k == 0 else t for k, t in enumerate(texts)]
    if any(len(found) > 1 for found in layers):
        ramp = _depth(theme)
        for x, text in ((0.0, "first layer"), (1.0, "last layer")):
            handles.append(Line2D([], [], color=ramp(x), marker="o", ms=4.5))
            texts.append(text)
    fig.legend(handles, texts, loc="outside lower left", ncols=len(handles), columnspacing=1.2)
