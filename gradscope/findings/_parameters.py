"""What the rules about parameters share: which there are, how large, and whose."""

from __future__ import annotations

from collections import defaultdict

from gradscope.findings._signals import Signals

NOT_HELD = "not in the optimizer"  # a site's note
WHOLE = 0.9  # share of the trainable elements
MANY = 0.05  # share of the trainable elements; an unused pooler of a large model has 0.01


def trainable(signals: Signals) -> list[str]:
    """In the model's order. Whatever is a parameter site requires a gradient."""
    return [site.name for site in signals.run.sites_of("parameter", aliases=True)]


def unregistered(names: list[str]) -> bool:
    """Whether parameters are none of the model's, as of layers kept in a plain list."""
    return any(name.startswith("(unregistered)") for name in names)


def module_of(parameter: str) -> str:
    """Path of the module that a parameter lies in."""
    return parameter.rpartition(".")[0]


def elements(signals: Signals, names: list[str]) -> int:
    return sum(max(1, signals.site("parameter", name).numel) for name in names)


def share(signals: Signals, names: list[str]) -> float:
    """Of all trainable elements."""
    return elements(signals, names) / elements(signals, trainable(signals))


def is_held(signals: Signals, name: str) -> bool:
    """Whether an optimizer has the parameter."""
    return NOT_HELD not in signals.site("parameter", name).note


def whole_modules(names: list[str], state: dict[str, str]) -> set[str]:
    """Modules all of whose parameters are in some state."""
    modules: dict[str, list[str]] = defaultdict(list)
    for name in names:
        modules[module_of(name)].append(name)
    return {m for m, members in modules.items() if all(n in state for n in members)}


def cleared(signals: Signals) -> bool:
    """Whether gradients reach the model's modules, and are gone when the optimizer steps."""
    modules, norms = (signals.matrix(kind, "grad_norm") for kind in ("module", "parameter"))
    return bool((modules.values > 0).any()) and not bool((norms.values != 0).any())


def always_zero(signals: Signals, name: str) -> bool:
    """Whether a parameter has a gradient, and it is exactly 0 at every recorded step."""
    norms = signals.matrix("parameter", "grad_norm")
    if name not in norms:
        return False
    return bool((norms.column(name)[norms.present[:, norms.sites.index(name)]] == 0).all())


def without_lone_vectors(signals: Signals, state: dict[str, str]) -> dict[str, str]:
    """Parameters and their states. A vector counts only along with all other parameters of its
    module: symmetry makes a bias's gradient 0."""
    whole = whole_modules(trainable(signals), state)
    return {
        name: of
        for name, of in state.items()
        if module_of(name) in whole or len(signals.site("parameter", name).shape) != 1
    }


def never_a_gradient(signals: Signals) -> list[str]:
    """Parameters that were in no graph of a loss, at no recorded step."""
    norms = signals.matrix("parameter", "grad_norm")
    return [name for name in trainable(signals) if name not in norms]
