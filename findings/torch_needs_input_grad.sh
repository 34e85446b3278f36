#!/usr/bin/env bash
# torch 2.14.1: `ctx.needs_input_grad` of a torch.autograd.Function says which inputs require a gradient, not which gradient
# is asked for: torch.autograd.grad(y, x) alone has it say (True, True), so a backward pass that goes by it works the
# gradient of w out too, to be thrown away. torch's own operations are told: conv2d then computes that of its input alone.
# Who meets it: layers of one's own with a costly weight gradient, under input gradients (saliency, penalties, benchmarks
# of one gradient). To have one gradient alone, let the other input not require any.
# Guessed before the first run: (True, False), as of torch's own operations.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env" && "$place/env/bin/pip" install -q torch==2.14.1 numpy==2.4.6
cat >"$place/t.py" <<'P'
import torch
from torch.utils._python_dispatch import TorchDispatchMode
told = []
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w
    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        told.append(ctx.needs_input_grad)
        return g @ w.T, x.T @ g
class Asked(TorchDispatchMode):
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if f is torch.ops.aten.convolution_backward.default:
            told.append(tuple(args[-1]))
        return f(*args, **(kwargs or {}))
x, w = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
torch.autograd.grad(Product.apply(x, w).sum(), x)
torch.autograd.grad(Product.apply(x, w.detach()).sum(), x)
image, kernel = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
y = torch.conv2d(image, kernel).sum()
with Asked():
    torch.autograd.grad(y, image)
print("torch", torch.__version__.split("+")[0])
print("a Function, x asked for:", told[0])
print("a Function, x asked for, w without gradient:", told[1])
print("torch's conv2d, its input asked for (input, weight, bias):", told[2])
P
"$place/env/bin/python" "$place/t.py" 2>/dev/null | tee "$place/seen"
diff "$place/seen" - <<'S'
torch 2.14.1
a Function, x asked for: (True, True)
a Function, x asked for, w without gradient: (True, False)
torch's conv2d, its input asked for (input, weight, bias): (True, False, False)
S
echo "as seen"
