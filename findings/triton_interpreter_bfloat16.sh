#!/usr/bin/env bash
# Triton 3.8.0 (with torch 2.14.1), TRITON_INTERPRET=1: bfloat16 is held by its bits. A minus is of those bits as a whole
# number, so the negative of 0.30078125 is -14.375 (comparisons are right); a cast from float32 cuts digits off where a
# device rounds to the nearest: 1.0756 becomes 1.0703125, not 1.078125; and a subnormal number widens to another one,
# 2^-129 to 0. In float16 all of it is right. So a kernel that is right on a device may fail in the
# interpreter, and the other way round; what helps is to widen by the bits, to compute in float32, and to allow what
# was narrowed one unit in the last place.
# Who meets it: whoever tests kernels for bfloat16 weights or scores without a GPU.
# Guessed before this was run: the interpreter, which is NumPy's arithmetic, widens bfloat16 to float32 and rounds back.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env" && "$place/env/bin/pip" install -q torch==2.14.1 triton==3.8.0 numpy==2.4.6
cat >"$place/t.py" <<'P'
import sys
import torch, triton, triton.language as tl

@triton.jit
def work(x, negative, below, narrowed, wide, tiny, widened, N: tl.constexpr):
    at = tl.arange(0, N)
    here = tl.load(x + at)
    tl.store(negative + at, -here)
    tl.store(below + at, (here < 0).to(tl.int8))
    tl.store(narrowed + at, tl.load(wide + at).to(narrowed.dtype.element_ty))
    tl.store(widened + at, tl.load(tiny + at).to(tl.float32))

def tried(dtype):
    x = torch.tensor([0.3, -0.3, 1.0, -2.0]).to(dtype)
    wide = torch.full((4,), 1.0756)
    negative, below, narrowed = torch.empty_like(x), torch.empty(4, dtype=torch.int8), torch.empty_like(x)
    tiny, widened = torch.full((4,), 2.0**-129 if dtype == torch.bfloat16 else 2.0**-20).to(dtype), torch.empty(4)
    work[1,](x, negative, below, narrowed, wide, tiny, widened, N=4)
    right = torch.equal(negative, -x), below.tolist() == (x < 0).int().tolist(), torch.equal(narrowed, wide.to(dtype)), torch.equal(widened, tiny.float())
    print(f"Triton {triton.__version__}, torch {torch.__version__.split('+')[0]}, {dtype}: -({x[0].item()}) = "
          f"{negative[0].item()}, ({x[1].item()} < 0) = {below[1].item()}, 1.0756 = {narrowed[0].item()}, {tiny[0].item():.3g} = {widened[0].item():.3g}; right: {right}")
    return right

sys.exit(tried(torch.float16) != (True, True, True, True) or tried(torch.bfloat16) != (False, True, False, False))
P
TRITON_INTERPRET=1 "$place/env/bin/python" "$place/t.py"
