"""Short training runs under `gradscope.attach`, and what they recorded, as dictionaries."""

import torch

import gradscope


def record(model, train, *, optimizer=None, every=1, update_every=1, **options):
    """The `Run` of `train(optimizer)`, recorded into memory.

    Args:
        model: the model.
        train: called with the optimizer, inside the scope.
        optimizer: by default plain SGD with a small learning rate.
    """
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    scope = gradscope.attach(
        model, optimizer=optimizer, out=None, every=every, update_every=update_every, **options
    )
    with scope:
        train(optimizer)
    return scope.run()


def train_steps(model, loss_of, optimizer, steps, after_backward=lambda step: None):
    """`steps` ordinary training steps; returns the losses."""
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = loss_of(model, step)
        loss.backward()
        after_backward(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def values(run, kind, metric, step=0):
    """site -> value at one step, of rows without an edge."""
    table = run.frame(kind, metric)
    table = table[(table["step"] == step) & (table["edge"] == "")]
    assert not table["site"].duplicated().any(), "a site has two values of one metric"
    return dict(zip(table["site"], table["value"], strict=True))


def fork_at(run, site, step=0):
    """What a run says about one fork.

    Returns:
        dict with grad_norm, cancellation, and by consumer (the edge without its operation):
        projection (summed), norms and cosines (sorted lists).
    """
    table = run.frame("fork")
    table = table[(table["step"] == step) & (table["site"] == site)]
    whole = table[table["edge"] == ""].set_index("metric")["value"]
    by = {"projection": {}, "norms": {}, "cosines": {}}
    for edge, metric, value in table[["edge", "metric", "value"]].itertuples(index=False):
        consumer = edge.rsplit(":", 1)[0]
        if not edge:
            continue
        if metric == "projection":
            by["projection"][consumer] = by["projection"].get(consumer, 0.0) + value
        elif metric == "grad_norm":
            by["norms"].setdefault(consumer, []).append(value)
        elif metric == "cosine":
            by["cosines"].setdefault(consumer, []).append(value)
    for metric in ("norms", "cosines"):
        by[metric] = {c: sorted(v) for c, v in by[metric].items()}
    return {"grad_norm": whole["grad_norm"], "cancellation": whole["cancellation"], **by}
