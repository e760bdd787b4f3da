"""The block and the network under `torch.export` and `torch.compile`."""

import shutil
import subprocess
import sys

import pytest
import torch

from etude.vision.moat import MOAT, MOATBlock

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="no C++ compiler"
)


def test_an_exported_block_takes_other_batches():
    torch.manual_seed(0)
    block = MOATBlock(in_dim=4, dim=8, stride=2, head_dim=4, rel_pos_size=3, window=2).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(block, (torch.randn(2, 4, 8, 8),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 4, 8, 8)
    torch.testing.assert_close(exported.module()(x), block(x))


def test_an_exported_network_gives_the_same_logits():
    torch.manual_seed(0)
    model = MOAT(
        num_classes=3, stem_dim=8, depths=(1, 1), dims=(8, 16), head_dim=8, in_chans=1, drop_path_rate=0.1
    ).eval()  # fmt: skip
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def run_alone(script):
    """Runs a script in a process of its own: the compiler cannot look through the shape checker of the tests."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_traced_training_step_gives_the_same_gradients_without_a_graph_break():
    run_alone("""
import torch
from etude.vision.moat import MOAT
torch.manual_seed(0)
model = MOAT(num_classes=3, stem_dim=8, depths=(1, 1), dims=(8, 16), head_dim=8, in_chans=1, window=(None, 2))
x = torch.randn(2, 1, 16, 16)
parameters = list(model.parameters())
wanted = torch.autograd.grad(model(x).square().sum(), parameters)
assert all(grad.abs().sum() > 0 for grad in wanted)
traced = torch.compile(model, backend="aot_eager", fullgraph=True)
found = torch.autograd.grad(traced(x).square().sum(), parameters)
torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
""")


@needs_compiler
def test_a_compiled_network_gives_the_same_logits():
    run_alone("""
import torch
from etude.vision.moat import MOAT
torch.manual_seed(0)
model = MOAT(num_classes=3, stem_dim=4, depths=(1,), dims=(4,), block_types=("moat",), head_dim=4, in_chans=1).eval()
x = torch.randn(2, 1, 16, 16)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-5)
""")
