#!/usr/bin/env bash
# Pillow 13.0.0: the transparent grey of a PNG (chunk tRNS) of 2 or 4 bits a pixel is compared with pixels that were
# already stretched to 8 bits, so no pixel but black ever matches it. Of a PNG with 16 bits a channel the upper bytes of
# the pixels are compared with the lower bytes of the transparent colour: the colour itself stays opaque, and another one
# becomes transparent. pypng 0.20220715.0 has the transparency that the chunk says.
# Who meets it: image folders with few grey levels and a transparent background, laid over white or read as RGBA.
# Guessed before the first run: alpha 0 for just the pixels of the transparent value, as at 1 and 8 bits.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env" && "$place/env/bin/pip" install -q pillow==13.0.0 pypng==0.20220715.0
cat >"$place/t.py" <<'P'
import io, itertools, sys
import PIL, png
from PIL import Image
def alphas(bits, planes, rows, key):
    """Alpha of each pixel of a PNG by Pillow and by pypng."""
    out = io.BytesIO()
    png.Writer(len(rows[0]) // planes, len(rows), greyscale=planes == 1, bitdepth=bits, transparent=key).write(out, rows)
    ours = Image.open(io.BytesIO(out.getvalue())).convert("RGBA").getchannel("A").tobytes()
    _, _, theirs, info = png.Reader(bytes=out.getvalue()).asRGBA()
    most = 2 ** info["bitdepth"] - 1
    return [a // 255 for a in ours], [a // most for row in theirs for a in row[3::4]]
got = {}
for bits in (1, 2, 4, 8):
    greys = list(range(2 ** bits))
    got[f"{bits} bits, grey 1"] = alphas(bits, 1, [greys], 1)
colours = [(0x1234, 0x5678, 0x9ABC), (0x3400, 0x7800, 0xBC00), (0, 0, 0)]
got["16 bits a channel"] = alphas(16, 3, [list(itertools.chain(*colours))], colours[0])
print("Pillow", PIL.__version__)
for name, (pillow, pypng) in got.items():
    print(f"{name}: transparent by Pillow {[i for i, a in enumerate(pillow) if not a]}, by pypng "
          f"{[i for i, a in enumerate(pypng) if not a]}")
agree = {name: pillow == pypng for name, (pillow, pypng) in got.items()}
expected = {"1 bits, grey 1": True, "2 bits, grey 1": False, "4 bits, grey 1": False, "8 bits, grey 1": True}
sys.exit(agree != expected | {"16 bits a channel": False})
P
"$place/env/bin/python" "$place/t.py"
