"""A ticket's mask put on the weights of another seed, or to use on another data set."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..binarizable import BINARIZABLE
from ..data import Dataset, Images, evaluation_batches
from ..report.tables import Table
from ..training.finished import evaluate_test
from .file import drawn_layers
from .ticket import Ticket


def transfer_table(ticket: Ticket, dataset: Dataset, seed: int | None = None) -> Table:
    """Test top-1 of a ticket's mask on other weights, other data or both, beside that of the mask shuffled.

    seed: of the weights to put the mask on, under the method of the ticket's run; None takes the ticket's own. The
    real-valued rest is the ticket's, with the statistics of batch norm taken anew from the training images.

    Two figures each: of the network as it is, where the data have as many classes as it tells apart, and of a readout,
    which is a logistic regression on what the last layer sees of the training images. The control is the same mask
    with its places permuted within each layer (and with them the signs, where these are the ticket's).

    Raises ValueError for a ticket without a binary layer, or one that does not know its network; where a seed is given
    for one that does not know its run, or prunes nothing; and for images that the network does not take.
    """
    check_masked(ticket, pruned=seed is not None)
    check_images(ticket, dataset)
    rows = []
    moved = shuffled({name: layer.binary for name, layer in ticket.layers.items()}, seed=0)
    elsewhere = {name: replace(layer, binary=moved[name]) for name, layer in ticket.layers.items()}
    for mask, layers in (("of the ticket", ticket.layers), ("shuffled", elsewhere)):
        masks = {name: layer.binary != 0 for name, layer in layers.items()}
        weights = layers if seed is None else drawn_layers(ticket, masks, seed)
        model = _renewed(replace(ticket, layers=weights).network(), dataset)
        suits = _last_layer(model).out_features == dataset.num_classes
        as_it_is = f"{evaluate_test(model, dataset)['test_top1']:.2f}" if suits else ""
        rows.append([mask, as_it_is, f"{_readout(model, dataset):.2f}"])
    return Table(f"test top-1 in %: {dataset.name}", ["mask", "as it is", "readout"], rows)


def check_masked(ticket: Ticket, pruned: bool = True) -> None:
    """ValueError for a ticket without a binary layer, and unless something is pruned in it, if that is asked for."""
    if not ticket.layers:
        raise ValueError("the ticket has no binary layer, and nothing that could go elsewhere")
    if pruned and all(layer.kept == layer.binary.numel() for layer in ticket.layers.values()):
        raise ValueError("nothing is pruned in the ticket: it has no mask to put on other weights")


def check_images(ticket: Ticket, dataset: Dataset) -> None:
    """ValueError where the ticket's network does not take the images of a data set."""
    if dataset.in_channels != ticket.images[0]:
        raise ValueError(f"{dataset.name}: {dataset.in_channels} channels, and the network is for {ticket.images[0]}")
    size = dataset.image_size
    try:
        with torch.no_grad():
            ticket.outline().eval()(torch.empty(1, dataset.in_channels, size, size, device="meta"))
    except RuntimeError as fault:
        reason = str(fault).partition("\n")[0]
        raise ValueError(f"{dataset.name}: the network does not take images of {size}x{size}: {reason}") from fault


def shuffled(layers: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """B of each layer with its places permuted at random."""
    generator = torch.Generator().manual_seed(seed)
    return {name: b.flatten()[torch.randperm(b.numel(), generator=generator)].view_as(b) for name, b in layers.items()}


@torch.no_grad()
def _renewed(model: nn.Module, dataset: Dataset) -> nn.Module:
    """The model with the statistics of its batch norms those of the training images."""
    # Not by torch's update_bn, which trains all modules: stochastic depth (efficientnet) would drop what they are of.
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, not a moving one
        norm.train()
    for x, _ in evaluation_batches(dataset.train, dataset) if norms else ():
        model(x)
    return model.eval()


def _readout(model: nn.Module, dataset: Dataset) -> float:
    from sklearn.linear_model import LogisticRegression  # seconds to import, which no other command needs
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    reader = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    reader.fit(_features(model, dataset, dataset.train).numpy(), dataset.train.labels.numpy())
    return float(100 * reader.score(_features(model, dataset, dataset.test).numpy(), dataset.test.labels.numpy()))


@torch.no_grad()
def _features(model: nn.Module, dataset: Dataset, images: Images) -> Tensor:
    """What the last layer sees of each image, [N, features]."""
    seen: list[Tensor] = []
    hook = _last_layer(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for x, _ in evaluation_batches(images, dataset):
        model(x)
    hook.remove()
    return torch.cat(seen)


def _last_layer(model: nn.Module) -> nn.Linear:
    last = [module for module in model.modules() if isinstance(module, BINARIZABLE)][-1]
    if not isinstance(last, nn.Linear):
        raise ValueError("the network's last layer is a convolution, and a readout needs a linear one")
    return last
