"""The layer and the network under `torch.export` and `torch.compile`."""

import shutil
import subprocess
import sys

import pytest
import torch

from etude.vision.convit import ConViT, GatedPositionalSelfAttention

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="no C++ compiler"
)


def test_an_exported_layer_takes_other_batches():
    torch.manual_seed(0)
    layer = GatedPositionalSelfAttention(dim=18, num_heads=9, grid_size=(3, 4)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(layer, (torch.randn(2, 12, 18),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 12, 18)
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_an_exported_network_gives_the_same_logits_for_other_batches():
    torch.manual_seed(0)
    model = ConViT(
        img_size=16, patch_size=4, in_chans=1, num_classes=3, dim=18, depth=3, num_heads=9, local_up_to_layer=2
    ).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (torch.randn(2, 1, 16, 16),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 1, 16, 16)
    torch.testing.assert_close(exported.module()(x), model(x))


SETUP = """
import torch
from etude.vision.convit import ConViT
torch.manual_seed(0)
model = ConViT(img_size=16, patch_size=4, in_chans=1, num_classes=3, dim=18, depth=2, num_heads=9, local_up_to_layer=1)
x = torch.randn(2, 1, 16, 16)
parameters = list(model.parameters())
def gradients(model):
    return torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1])), parameters)
"""


def run_alone(script):
    """Runs a script in a process of its own: the compiler cannot look through the shape checker of the tests."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_traced_training_step_gives_the_same_gradients_without_a_graph_break():
    run_alone(
        SETUP
        + """
wanted = gradients(model)
found = gradients(torch.compile(model, backend="aot_eager", fullgraph=True))
torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
"""
    )


@needs_compiler
def test_a_compiled_layer_gives_the_same_outputs():
    run_alone("""
import torch
from etude.vision.convit import GatedPositionalSelfAttention
torch.manual_seed(0)
layer = GatedPositionalSelfAttention(dim=8, num_heads=4).eval()
x = torch.randn(2, 16, 8)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=1e-4, atol=1e-5)
""")
