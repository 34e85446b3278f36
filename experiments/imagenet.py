"""Accuracy on ImageNet, W/A 1/1 (Table 3): python experiments/imagenet.py --recipe paper --data imagenet:PATH"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.imagenet import Imagenet

if __name__ == "__main__":
    run_command(Imagenet.main)
