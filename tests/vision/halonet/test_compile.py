"""The layer and the network under `torch.export` and `torch.compile`."""

import shutil
import subprocess
import sys

import pytest
import torch

from etude.vision.halonet import HaloAttention, HaloNet

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="no C++ compiler"
)


def network():
    torch.manual_seed(0)
    return HaloNet(
        num_classes=3, widths=(16, 32), depths=(1, 1), block_size=4, halo_size=1, in_chans=1, small_input=True
    )


@pytest.mark.parametrize("chunk_rows", [None, 1])
def test_an_exported_layer_takes_other_batches(chunk_rows):
    torch.manual_seed(0)
    layer = HaloAttention(dim=8, num_heads=2, block_size=4, halo_size=1, chunk_rows=chunk_rows).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(layer, (torch.randn(2, 8, 8, 12),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 8, 8, 12)
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_an_exported_network_gives_the_same_logits():
    model = network().eval()
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def run_alone(script):
    """Runs a script in a process of its own: the compiler cannot look through the shape checker of the tests."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_traced_training_step_gives_the_same_gradients_without_a_graph_break():
    run_alone("""
import torch
from etude.vision.halonet import HaloNet
torch.manual_seed(0)
model = HaloNet(num_classes=3, widths=(16,), depths=(1,), block_size=4, halo_size=1, in_chans=1, small_input=True)
for name, value in model.named_parameters():  # zero-initialised norms would hide the attention
    if name.endswith("norm3.weight"):
        torch.nn.init.ones_(value)
x = torch.randn(2, 1, 16, 16)
parameters = list(model.parameters())
wanted = torch.autograd.grad(model(x).square().sum(), parameters)
assert all(grad.abs().sum() > 0 for grad in wanted)
traced = torch.compile(model, backend="aot_eager", fullgraph=True)
found = torch.autograd.grad(traced(x).square().sum(), parameters)
torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
""")


@needs_compiler
def test_a_compiled_attention_gives_the_same_outputs():
    run_alone("""
import torch
from etude.vision.halonet import halo_attention
torch.manual_seed(0)
q, k, v = (torch.randn(2, 2, 4, 8, 12) for _ in range(3))
rel_h, rel_w = torch.randn(2, 11, 4)
def attention(q, k, v):
    return halo_attention(q, k, v, block_size=4, halo_size=1, rel_h=rel_h, rel_w=rel_w)
compiled = torch.compile(attention, fullgraph=True)(q, k, v)
torch.testing.assert_close(compiled, attention(q, k, v), rtol=1e-4, atol=1e-5)
""")
