from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import (
    METHODS,
    Method,
    binarize_weights,
    binary_layers,
    binary_weights,
    create_model,
    fix_masks,
    set_prune_rate,
)
from mpt_bihalf.binarizers import BINARIZERS
from mpt_bihalf.provenance import _sum

NAMES = [name for name in METHODS if name != "dense"]
MASKED = [name for name in NAMES if METHODS[name].mask is not None]


def network() -> nn.Module:
    return create_model("conv2", in_channels=1, image_size=8, width=0.1, seed=0)


def under(
    method: str | Method, rate: Any = 0.5, p_pos: Any = 0.5, scope: str = "layer", seed: int = 0, **parts: Any
) -> Any:
    return binarize_weights(network(), method, rate, p_pos, scope, seed=seed, **parts)


@dataclass(frozen=True)
class Const:
    """A scale of one size."""

    size: float

    def __call__(self, weight: Tensor, mask: Tensor | None) -> Tensor:
        return weight.new_tensor(self.size)


def older(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As it was before it told its method."""
    return {name: value for name, value in state.items() if not name.endswith("_extra_state")}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    one, other = binary_weights(a), binary_weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", NAMES)
def test_a_state_goes_into_a_model_of_its_method_older_ones_too(method: str) -> None:
    model = under(method, 0.6)
    for state in (model.state_dict(), older(model.state_dict())):
        other = under(method, 0.6, seed=1)
        other.load_state_dict(state)
        assert same_weights(model, other)
    assert all(isinstance(value, Tensor) for value in model.state_dict().values())


@pytest.mark.parametrize("method", NAMES)
def test_a_state_of_another_method_is_an_error(method: str) -> None:
    state = under(method).state_dict()
    decides = {name: (m.trains, m.mask, m.binarizer, m.scale) for name, m in METHODS.items()}
    for other in NAMES:
        if decides[other] != decides[method]:  # those that differ in their gradient alone use the same weights
            # Of one that has scores where the other has none torch itself says so.
            with pytest.raises(RuntimeError, match=r"state dictionary was made under|Missing key|Unexpected key"):
                under(other).load_state_dict(state)
    told = r"made under method 'mpt-sign', and this model is under 'mpt-bihalf'"
    with pytest.raises(RuntimeError, match=told) as caught:
        under("mpt-bihalf").load_state_dict(under("mpt-sign").state_dict(), strict=False)
    assert str(caught.value).count("state dictionary") == 1  # not once a layer


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "rate": (lambda: under("mpt-sign", 0.3), lambda: under("mpt-sign", 0.5), "prune_rate 0.3, and this model has 0.5"),
    "rate of magnitudes": (
        lambda: under("magnitude-bihalf", 0.3),
        lambda: under("magnitude-bihalf", 0.5),
        "prune_rate 0.3, and this model has 0.5",
    ),
    "prior": (lambda: under("bihalf", p_pos=0.3), lambda: under("bihalf"), "p_pos 0.3, and this model has 0.5"),
    "scope": (
        lambda: under("mpt-bihalf", scope="global"),
        lambda: under("mpt-bihalf"),
        "scope global, and this model has layer",
    ),
    "scale": (lambda: under("mpt-sign", scale="kaiming"), lambda: under("mpt-sign"), "another scale, l1 for kaiming"),
}


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_a_state_of_another_setting_is_an_error_that_names_both(setting: str) -> None:
    make, other, told = SETTINGS[setting]
    with pytest.raises(RuntimeError, match=told):
        other().load_state_dict(make().state_dict())


def test_settings_that_a_method_makes_no_use_of_do_not_count() -> None:
    under("sign", 0.2, 0.3, "filter").load_state_dict(under("sign", 0.7).state_dict())
    under("mpt-sign", 0.5, 0.3).load_state_dict(under("mpt-sign", 0.5).state_dict())
    under("mpt-balanced", scope="filter").load_state_dict(under("mpt-balanced").state_dict())
    under("bihalf", latent_gradient="unscaled").load_state_dict(under("bihalf").state_dict())
    under("mpt-sign", "1/2").load_state_dict(under("mpt-sign", 0.5).state_dict())


def test_of_parts_of_ones_own_every_setting_counts_and_names_are_compared() -> None:
    def mine(latent: Any, mask: Any) -> Tensor:
        return BINARIZERS["sign"](latent, mask)

    own = Method("own", "weights", mine)
    under(own).load_state_dict(under(own).state_dict())
    with pytest.raises(RuntimeError, match=r"p_pos 0\.5, and this model has 0\.3"):
        under(own, p_pos=0.3).load_state_dict(under(own).state_dict())
    with pytest.raises(RuntimeError, match=r"'own', and this model is under 'sign'"):
        under("sign").load_state_dict(under(own).state_dict())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_rising_rate_goes_on_from_where_it_was(scope: str) -> None:
    model = under("mpt-sign", 0.7, scope=scope)
    set_prune_rate(model, 0.4)
    resumed = under("mpt-sign", 0.7, scope=scope, seed=1)
    resumed.load_state_dict(model.state_dict())
    assert same_weights(model, resumed)
    for each in (model, resumed):
        set_prune_rate(each, 0.7)
    assert same_weights(model, resumed)
    at_rate = under("mpt-sign", 0.4, scope=scope)
    set_prune_rate(model, 0.4)
    at_rate.load_state_dict(model.state_dict())  # built with the rate in force
    assert same_weights(model, at_rate)


@pytest.mark.parametrize("method", MASKED)
def test_averages_and_casts_of_whole_states_keep_what_they_tell(method: str) -> None:
    states = [under(method, 0.6, seed=seed).state_dict() for seed in range(3)]
    mean = {name: sum(state[name] for state in states) / 3 for name in states[0]}
    under(method, 0.6).load_state_dict(mean)
    halves = {name: value.to(torch.bfloat16) for name, value in states[0].items()}
    under(method, 0.6).load_state_dict(halves)
    with pytest.raises(RuntimeError, match="prune_rate"):
        under(method, 0.5).load_state_dict(halves)


@pytest.mark.parametrize(
    "damage", [torch.zeros(3), torch.tensor([91.0] * 2000), torch.empty(0), torch.full((9,), torch.nan)]
)
def test_a_damaged_entry_is_one_line(damage: Tensor) -> None:
    model = under("mpt-sign")
    state = model.state_dict()
    for name in state:
        if name.endswith("_extra_state"):
            state[name] = damage
    with pytest.raises(RuntimeError, match="says nothing readable"):
        model.load_state_dict(state)


def test_parts_of_ones_own_are_told_apart_by_what_they_print() -> None:
    state = under("mpt-bihalf", scale=Const(0.1)).state_dict()
    under("mpt-bihalf", scale=Const(0.1)).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"another scale, Const\(size=0\.5\) .* for Const\(size=0\.1\)"):
        under("mpt-bihalf", scale=Const(0.5)).load_state_dict(state)


@pytest.mark.parametrize("strict", [True, False])
def test_fixed_masks_are_part_of_what_a_state_tells(strict: bool) -> None:
    fixed = under("bihalf")
    fix_masks(fixed, {name: torch.rand(bits.shape) < 0.5 for name, bits in binary_weights(fixed).items()})
    with pytest.raises(RuntimeError, match="with fixed masks, and this model has none: call fix_masks first"):
        under("bihalf").load_state_dict(fixed.state_dict(), strict=strict)
    with pytest.raises(RuntimeError, match="without fixed masks, and this model has some"):
        fixed.load_state_dict(under("bihalf").state_dict(), strict=strict)
    other = under("bihalf", seed=1)
    fix_masks(other, {name: torch.rand(bits.shape) < 0.5 for name, bits in binary_weights(other).items()})
    other.load_state_dict(fixed.state_dict(), strict=strict)
    assert same_weights(fixed, other)


def test_an_average_over_a_rising_rate_is_no_state() -> None:
    model = under("mpt-sign", 0.5)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    set_prune_rate(model, 0.25)
    mean = {name: (value + first[name]) / 2 for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="says nothing readable"):
        model.load_state_dict(mean)


def test_the_rate_of_one_layers_state_is_that_of_all_that_are_ranked_with_it() -> None:
    model, other = under("mpt-sign", 0.5, scope="global"), under("mpt-sign", 0.5, scope="global")
    set_prune_rate(model, 0.8)
    other[0].load_state_dict(model[0].state_dict())
    assert {part.prune_rate for _, part, _ in binary_layers(other)} == {0.8}


def test_an_older_state_of_layers_with_scores_of_their_own_is_an_error_where_they_share_them() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    binarize_weights(model, "mpt-sign", seed=0)
    with pytest.raises(RuntimeError, match="had scores of their own"):
        model.load_state_dict(older(model.state_dict()))
    model.load_state_dict(model.state_dict())


def test_a_state_of_a_later_version_that_tells_more_is_read() -> None:
    model = under("mpt-sign")
    state = model.state_dict()
    for name in state:
        if name.endswith("_extra_state"):
            told = json.loads(bytes(state[name].int().tolist()))
            told |= {"check": "", "of_a_later_version": "something"}
            told["check"] = _sum(told)
            state[name] = torch.tensor([*json.dumps(told).encode()], dtype=torch.float32)
    under("mpt-sign", seed=1).load_state_dict(state)
