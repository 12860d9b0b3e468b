"""LFQ and its way back: both bit orders, zeros and numbers that are none, one to 62 bits; its compiled variants."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vistok.triton_kernels import lfq as kernel

from ..table import Case, Cost, Kernel

Arguments = dict[str, Any]
Magnitude = Callable[[int], float]


def one(_: int) -> float:
    return 1.0


def weights(dim: int, arguments: Arguments) -> list[int]:
    powers = [2**i for i in range(dim)]
    return powers if arguments.get("bit_order") == "lsb" else powers[::-1]


def check(arguments: Arguments, found: tuple[Tensor, Tensor], magnitude: Magnitude = one) -> None:
    """Ids and codes to the bit."""
    z = arguments["z"].cpu()
    codes, ids = found
    dim = z.shape[-1]
    worth = weights(dim, arguments)
    rows = z.double().reshape(-1, dim).tolist()
    expected_ids = [sum(w for w, value in zip(worth, row, strict=True) if value > 0) for row in rows]
    assert ids.dtype == torch.int64 and ids.shape == z.shape[:-1] and ids.reshape(-1).tolist() == expected_ids
    assert codes.dtype == z.dtype
    expected = torch.full(z.shape, magnitude(dim)).to(z.dtype)
    assert torch.equal(codes.cpu(), torch.where(z > 0, expected, -expected))


def check_unpacked(arguments: Arguments, codes: Tensor, magnitude: Magnitude = one) -> None:
    ids, dim = arguments["indices"].cpu(), arguments["dim"]
    worth = weights(dim, arguments)
    signs = [[id // w % 2 * 2.0 - 1.0 if id >= 0 else 0.0 for w in worth] for id in ids.reshape(-1).tolist()]
    assert codes.dtype == torch.float32
    assert torch.equal(codes.cpu(), torch.tensor(signs).reshape(*ids.shape, dim) * magnitude(dim))


def draw(device: str, *shape: int, order: str = "msb", dtype: torch.dtype = torch.float32) -> Arguments:
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return {"z": z.to(device, dtype), "bit_order": order}


def not_finite(device: str) -> Arguments:
    z = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e38, 1e-38, -torch.nan])
    return {"z": torch.stack([z, z.roll(1), z.roll(2)], 1).to(device)}


def strided(device: str) -> Arguments:
    z = torch.randn(2, 9, 20, generator=torch.Generator().manual_seed(0)).to(device)
    return {"z": z.transpose(1, 2)[:, ::3, 1:8], "bit_order": "lsb"}


def far_apart(device: str) -> Arguments:
    """The last row lies past 2^31 numbers; the memory between is never touched."""
    rows, step = 18, 1 << 27
    z = torch.empty(rows * step, dtype=torch.bfloat16, device=device).as_strided((rows, 18), (step, 1))
    z.copy_(torch.randn(rows, 18, generator=torch.Generator().manual_seed(0)))
    return {"z": z}


def draw_ids(device: str, dim: int, *lead: int, order: str = "msb") -> Arguments:
    ids = torch.randint(-1, 2**dim, lead, generator=torch.Generator().manual_seed(0))
    return {"indices": ids.to(device), "dim": dim, "bit_order": order}


def strided_ids(device: str) -> Arguments:
    arguments = draw_ids(device, 7, 12, 3)
    return {**arguments, "indices": arguments["indices"].T[:, ::2]}


def no_tokens(device: str) -> Arguments:
    return {"indices": torch.full((5,), -1, device=device), "dim": 4}


def cases(op: str, magnitude: Magnitude) -> list[Case]:
    """The cases of an op that gives codes of -magnitude(dim) and magnitude(dim), and of its way back."""

    def packed(name: str, make: Callable[..., Arguments], *values: Any, **options: Any) -> Case:
        return Case(op, name, lambda device: make(device, *values, **options), partial(check, magnitude=magnitude))

    def unpacked(name: str, make: Callable[..., Arguments], *values: Any, **options: Any) -> Case:
        checked = partial(check_unpacked, magnitude=magnitude)
        return Case(f"{op}_unpack", name, lambda device: make(device, *values, **options), checked)

    orders = [(dim, order) for dim in (1, 5, 18, 48, 62) for order in ("msb", "lsb")]
    return [
        *(packed(f"d{dim}-{order}", draw, 61, dim, order=order) for dim, order in orders),
        packed("bfloat16", draw, 61, 18, dtype=torch.bfloat16),
        packed("float16", draw, 61, 18, dtype=torch.float16),
        packed("no-rows", draw, 0, 18),
        packed("one-vector", draw, 18),
        packed("batched", draw, 2, 3, 4, 7),
        packed("not-finite", not_finite),
        packed("strided", strided),
        packed("rows-past-2-to-the-31", far_apart),
        *(unpacked(f"d{dim}-{order}", draw_ids, dim, 61, order=order) for dim, order in orders),
        unpacked("no-rows", draw_ids, 18, 0),
        unpacked("one-id", draw_ids, 18),
        unpacked("batched", draw_ids, 7, 2, 3, 4),
        unpacked("strided", strided_ids),
        unpacked("no-tokens", no_tokens),
    ]


def variants(op: str, width: int) -> list[Kernel]:
    """The compiled variants for that number of bits."""
    rows, columns = 1 << 20, 1 << (width - 1).bit_length()
    shape = {"WIDTH": width, "MSB": True, "ROWS": kernel.TILE // columns, "COLUMNS": columns}

    def forward(pointer: str) -> Kernel:
        moved = (2 if pointer == "*bf16" else 4) * 2 * width + 8
        return Kernel(
            op=op,
            name=f"{pointer[1:]}-d{width}",
            function=kernel.lfq_kernel,
            arguments={"z": pointer, "codes": pointer, "ids": "*i64", "N": "i32", "magnitude": "fp32"},
            aligned=("z", "codes", "ids"),
            constants=lambda _: shape,
            options=lambda _: {"num_warps": 4, "num_stages": 3},
            tensor_cores=False,
            vector_loads=width % 8 == 0,
            cost=Cost(f"N={rows}, D={width}", float(rows * moved), other_flops=4.0 * rows * width),
        )

    back = Kernel(
        op=f"{op}_unpack",
        name=f"d{width}",
        function=kernel.lfq_unpack_kernel,
        arguments={"ids": "*i64", "codes": "*fp32", "N": "i32", "magnitude": "fp32"},
        aligned=("ids", "codes"),
        constants=lambda _: shape,
        options=lambda _: {"num_warps": 4, "num_stages": 3},
        tensor_cores=False,
        vector_loads=False,
        cost=Cost(f"N={rows}, D={width}", float(rows * (4 * width + 8)), other_flops=4.0 * rows * width),
    )
    return [forward("*fp32"), forward("*bf16"), back]


CASES = cases("lfq", one)
KERNELS = variants("lfq", 18)
