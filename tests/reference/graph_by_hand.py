"""The forks of a graph, one node at a time.

No hook measures anything here. `torch.autograd.grad` gives the gradient at every output of every
node; a node that is called by hand with those at its outputs returns the term that it sends along
each of its edges.
"""

import torch
from torch.autograd.graph import GradientEdge

MOST_EDGES = 16  # a tensor that is read more often is measured as a whole
SHOWN_ANEW = ("ToCopyBackward0", "ViewBackward0", "TransposeBackward0", "SelectBackward0")


def sequence_number():
    """Autograd's count of operations so far."""
    return (torch.zeros((), requires_grad=True) * 1).grad_fn._sequence_nr()


class Span:
    """Between which counts a model's last forward pass with a graph ran, by its root's hooks."""

    def __init__(self, model):
        self._hooks = [
            model.register_forward_pre_hook(self._note("start")),
            model.register_forward_hook(self._note("end")),
        ]

    def _note(self, name):
        def note(*_):
            if torch.is_grad_enabled():
                setattr(self, name, sequence_number())

        return note

    def remove(self):
        for hook in self._hooks:
            hook.remove()


def nodes_from(root):
    nodes = [root]
    seen = {root}
    for node in nodes:
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return nodes


def forks(loss, span):
    """Terms of every tensor that has several readers: list of (whole, parts).

    `whole`: the tensor's gradient, as the engine added it up in the tensor's own precision.
    `parts`: gradients by reading edge, of the forward pass or of the loss. Readers that send
    nothing back are left out, and so are tensors made before or after the forward pass, but for
    leaves and for what shows the model's own tensors in another shape or precision.
    """
    nodes = nodes_from(loss.grad_fn)
    readers = {}
    for node in nodes:
        for position, (producer, number) in enumerate(node.next_functions):
            if producer is not None:
                readers.setdefault((producer, number), []).append((node, position))
    edges = [GradientEdge(n, i) for n in nodes for i in range(_outputs(n))]
    gradients = torch.autograd.grad(loss, edges, retain_graph=True, allow_unused=True)
    arriving = {(e.node, e.output_nr): g for e, g in zip(edges, gradients, strict=True)}
    sent = {}

    def term(node, position, shape):
        if node not in sent:
            given = [arriving.get((node, i)) for i in range(_outputs(node))]
            given = [g if g is None else g.clone() for g in given]
            call = getattr(node, "apply", node)  # a custom Function's node has its own
            out = call(*given) if any(g is not None for g in given) else ()
            sent[node] = out if isinstance(out, tuple) else (out,)
        part = sent[node][position] if position < len(sent[node]) else None
        # What was broadcast gets the sum: the engine sees to that, not the node.
        return part if part is None else part.sum_to_size(shape)

    found = []
    for place, edges_of in readers.items():
        if not hasattr(place[0], "variable") and not _made_in(span, place[0]):
            continue
        shape = _shape(*place)
        parts = [term(node, position, shape) for node, position in edges_of]
        parts = [part for part in parts if part is not None]
        if len(parts) > 1 and len(edges_of) <= MOST_EDGES:
            found.append((arriving[place], parts))
    return found


def _made_in(span, node):
    while type(node).__name__ in SHOWN_ANEW and node._sequence_nr() > span.end:
        ((node, _),) = node.next_functions
    return span.start < node._sequence_nr() < span.end


def _outputs(node):
    return 1 if hasattr(node, "variable") else len(node._input_metadata)


def _shape(node, number):
    return (node.variable if hasattr(node, "variable") else node._input_metadata[number]).shape
