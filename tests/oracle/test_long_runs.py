"""Long runs: memory does not grow with recorded steps, and a killed run keeps its steps."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import pytest
import torch

import gradscope
from tests.reference.networks import data, encoder, weighted


def one_step(model, optimizer, scope, step):
    loss = weighted(model(data(step, 2, 3 + step % 3, 8)))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    scope.log(loss=loss)


def test_memory_does_not_grow_with_recorded_steps(tmp_path):
    """To a file, what was flushed is gone from memory, whatever shapes come.

    What grows with the steps grows in every stretch of them; caches that Python fills once, when
    somebody imports or registers something, grow in one.
    """
    torch.manual_seed(0)
    model = encoder(0.1)
    optimizer = torch.optim.Adam(model.parameters())
    warm, more, stretches = 100, 100, 3
    held, objects = [], []
    # Flushed at every step: what waits in memory must not depend on how fast the machine is.
    with gradscope.attach(
        model, optimizer=optimizer, out=tmp_path / "run.pt", every=1, flush_every=0
    ) as scope:
        for step in range(warm):
            one_step(model, optimizer, scope, step)
        for begin in range(warm, warm + stretches * more, more):
            gc.collect()
            before = len(gc.get_objects())
            tracemalloc.start()
            for step in range(begin, begin + more):
                one_step(model, optimizer, scope, step)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
            objects.append(len(gc.get_objects()) - before)
    # A recorded step holds about 300 numbers: as Python floats, these steps would be 0.5 MB.
    assert min(held) < 75_000, f"{held} bytes more after {more} steps each"
    assert min(objects) < more / 10, f"{objects} objects more after {more} steps each"
    run = gradscope.load(tmp_path / "run.pt")
    assert run.steps.tolist() == list(range(warm + stretches * more))
    assert len(run.scalars()["loss"]) == warm + stretches * more


TEN_THOUSAND = """
    import sys, torch, gradscope
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def megabytes():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 1e6

    with gradscope.attach(
        model, optimizer=optimizer, out=sys.argv[1], every=1, flush_every=0.2
    ) as scope:
        for step in range(10_000):
            loss = model(torch.randn(2 + step % 7, 3)).square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scope.log(loss=loss)
            if step in (2_000, 9_999):
                print(megabytes(), flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_ten_thousand_recorded_steps_take_no_more_memory_than_two_thousand(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TEN_THOUSAND), str(tmp_path / "run.pt")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    early, late = map(float, done.stdout.split())
    # Held as they are written, the numbers of 8,000 steps would be 4 MB and more.
    assert late - early < 2, f"{early} MB at step 2,000 and {late} MB at step 9,999"
    assert len(gradscope.load(tmp_path / "run.pt").steps) == 10_000


SCRIPT = """
    import contextlib, sys, torch, gradscope
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scopes = [
        gradscope.attach(model, optimizer=optimizer, out=out, every=1, flush_every=seconds)
        for out, seconds in ((sys.argv[1], 0.01), (sys.argv[2], 1e6))
    ]
    for step in range(10**6):
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for scope in scopes:
            scope.log(loss=loss)
        print(step, flush=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(file flushed all the time, file never flushed) of a process killed after step 60."""
    folder = tmp_path_factory.mktemp("killed")
    often, never = folder / "often.pt", folder / "never.pt"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(often), str(never)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        for line in process.stdout:
            if int(line) == 60:
                time.sleep(0.1)  # it goes on, and flushes, until its output pipe is full
                break
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    return often, never


def test_a_killed_process_leaves_its_steps(killed):
    """Everything flushed so far is there, and says that it was cut short."""
    run = gradscope.load(killed[0])
    assert run.meta["status"] == "recording"
    steps = run.steps.tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= 50
    norms = run.frame("module", "grad_norm")
    last = norms[norms["step"] == steps[-1]]
    assert set(last["site"]) == {"0", "1", "2", "(output)"}
    first = norms[(norms["step"] == 0) & (norms["site"] == "2")]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    y = model(torch.ones(2, 3))
    assert first["value"].item() == pytest.approx((2 * y).norm().item(), rel=1e-5)


def test_killed_before_the_first_flush(killed):
    """Even then there is a file, and it opens."""
    run = gradscope.load(killed[1])
    assert run.meta["status"] == "recording"
    assert len(run.steps) < 60
