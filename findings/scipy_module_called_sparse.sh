#!/usr/bin/env bash
# SciPy 1.17.1 with NumPy 2.4.6: any module that was imported under the name `sparse` is taken for PyData's. Its tests of
# statistics look for arrays of that library in lists of numbers if sys.modules has the name, and end in "AttributeError:
# module 'sparse' has no attribute 'SparseArray'". Arrays of NumPy are not looked at so.
# Who meets it: projects on pruning, which have a sparse.py beside their scripts, and compare runs by SciPy.
# Guessed before this was run: SciPy goes by the types of its arguments, and a module of one's own changes nothing.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env" && "$place/env/bin/pip" install -q scipy==1.17.1 numpy==2.4.6
echo 'MASK = "a module of a project that prunes networks"' >"$place/sparse.py"
cat >"$place/t.py" <<'P'
import sys
if sys.argv[1] == "with":
    import sparse
import numpy, scipy
from scipy import stats
a, b = [1.0, 2.0, 3.0, 5.0], [1.5, 1.0, 4.0, 7.0]
try:
    found = f"p = {stats.ttest_rel(a, b).pvalue:.4f}"
except AttributeError as fault:
    found = f"AttributeError: {fault}"
print(f"SciPy {scipy.__version__}, NumPy {numpy.__version__}, {sys.argv[1]} a module called sparse: {found}")
wanted = "p = 0.3910" if sys.argv[1] == "without" else "AttributeError: module 'sparse' has no attribute 'SparseArray'"
sys.exit(found != wanted)
P
"$place/env/bin/python" "$place/t.py" without
"$place/env/bin/python" "$place/t.py" with
