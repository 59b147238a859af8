"""That the exact solver stays an order faster than the loop it replaces; the full figures: benchmark_layers.py."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from apgd_teach.merging import Apgd, ApgdPublished, projector

bench = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("benchmark_layers.py"))))


@pytest.mark.slow
@pytest.mark.alone
def test_row_exact_with_its_subspace_is_five_times_as_fast_as_the_loop() -> None:
    found = bench.measure(256, 256, 5)
    # Measured with one thread, two cores busy with other work: 16 and 58. The margin is for another machine.
    assert found["ratio"]["row exact"] > 5
    assert found["ratio"]["solver alone"] > 10
    assert found["left"]["row exact"] < 1e-6
    assert found["left"]["solver alone"] < 1e-6


def test_the_loop_protects_what_the_exact_solver_protects() -> None:
    tau = bench.make_task_vectors(96, 72).double()
    ours = Apgd(granularity="row", protect=1 / 6, flatten=0.0).solve(tau).basis
    assert ours.shape == (96, 12)
    assert torch.allclose(projector(bench.literal_basis(tau)), projector(ours), atol=1e-6)


def test_the_literal_loop_is_the_library_s() -> None:
    tau = bench.make_task_vectors(96, 72).double()
    basis = bench.literal_basis(tau)
    coefficients = bench.task_aware(tau, eta=bench.ETA)
    literal = bench.literal_delta(tau, coefficients, basis)
    ours = ApgdPublished(eta=bench.ETA).delta(tau, coefficients, basis)
    assert float(literal.norm()) > 0
    torch.testing.assert_close(ours, literal, rtol=1e-6, atol=1e-9 * float(literal.abs().max()))


def test_the_benchmark_s_task_vectors_are_of_the_length_and_kind_that_it_states() -> None:
    tau = bench.make_task_vectors(96, 64)
    assert torch.linalg.vector_norm(tau, dim=(1, 2)).tolist() == pytest.approx([0.23] * 8)
    shared = torch.linalg.qr(bench.shared_directions(96, 64, 0)).Q
    inside = [float((shared.T @ one).square().sum() / one.square().sum()) for one in tau]
    # 30 % of the energy, and what chance puts into 4 of 96 directions.
    assert min(inside) > 0.25
    assert max(inside) < 0.4
    assert torch.equal(tau, bench.make_task_vectors(96, 64))


def test_the_files_are_of_the_size_of_vit_b_32() -> None:
    shapes = bench.vit_shapes()
    counts = {shape: list(shapes.values()).count(shape) for shape in set(shapes.values())}
    assert (counts[768, 768], counts[3072, 768] + counts[768, 3072]) == (48, 24)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 87_456_000


def test_the_tables_show_a_row_a_layer() -> None:
    results = [bench.measure(24, 16, 2), bench.measure(16, 24, 1)]
    seconds, ratios, left = bench.layer_tables(results, "here")
    assert seconds.column("layer") == ratios.column("layer") == left.column("layer") == ["24 × 16", "16 × 24"]
    assert all(one > 0 for row in (*seconds.rows, *ratios.rows) for one in row[1:])
