#!/usr/bin/env bash
# torch 2.14.1, CPU: of one image the gradient of batch norm is silently wrong where the input is contiguous and the gradient
# lies as [H, W, N, C]: the stride of a dimension of size 1 is open, so torch takes such a gradient for channels-last, and
# then reads it otherwise. In training and in evaluation mode. The same numbers in the input's layout or in channels-last as
# torch writes it, or with the sides as one dimension [N, C, H W], give the right gradient, and so do several images.
# Who meets it: batch norm over one image (or a batch turned into one, as layouts of one's own do), behind which gradients
# come by views and permutations.
# Guessed before the first run: strides of a gradient change nothing but speed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env" && "$place/env/bin/pip" install -q torch==2.14.1 numpy==2.4.6
cat >"$place/t.py" <<'P'
import torch
from torch.nn import functional as F
def gradient(x, g, training):
    """That of x, of batch norm without scale and shift."""
    x = x.detach().requires_grad_()
    statistics = torch.zeros(x.shape[1], dtype=x.dtype), torch.ones(x.shape[1], dtype=x.dtype)
    F.batch_norm(x, *statistics, training=training).backward(g)
    return x.grad
print("torch", torch.__version__.split("+")[0])
torch.manual_seed(0)
for shape in ((2, 3, 4, 4), (1, 3, 4, 4), (2, 3, 5, 1), (2, 3, 1, 5), (6, 3, 1, 1)):
    x, g = torch.randn(shape), torch.randn(shape)
    last = g.contiguous(memory_format=torch.channels_last)
    moved = g.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)  # the same numbers, as [H, W, N, C]
    told = []
    for training in (True, False):
        right = gradient(x.double(), g.double(), training).float()
        forms = [gradient(x, form, training) for form in (g, last, moved)]
        forms.append(gradient(x.flatten(2), moved.flatten(2), training))
        told.append([torch.allclose(form.view(shape), right, atol=1e-4) for form in forms])
    assert torch.equal(g, moved)
    print(shape, "right as it lies, channels last, [H, W, N, C], in three dimensions:", *told)
P
"$place/env/bin/python" "$place/t.py" 2>/dev/null | tee "$place/seen"
diff "$place/seen" - <<'S'
torch 2.14.1
(2, 3, 4, 4) right as it lies, channels last, [H, W, N, C], in three dimensions: [True, True, True, True] [True, True, True, True]
(1, 3, 4, 4) right as it lies, channels last, [H, W, N, C], in three dimensions: [True, True, False, True] [True, True, False, True]
(2, 3, 5, 1) right as it lies, channels last, [H, W, N, C], in three dimensions: [True, True, True, True] [True, True, True, True]
(2, 3, 1, 5) right as it lies, channels last, [H, W, N, C], in three dimensions: [True, True, True, True] [True, True, True, True]
(6, 3, 1, 1) right as it lies, channels last, [H, W, N, C], in three dimensions: [True, True, True, True] [True, True, True, True]
S
echo "as seen"
