import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Reductions in one order: twins compare bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
