"""One choice of device and number format: given, taken from the environment, or measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from cart_qdrant import compute as module  # noqa: E402
from cart_qdrant.compute import (  # noqa: E402
    Compute,
    ComputeOptions,
    Work,
    attend,
    choose,
    compute_of,
    described,
    measure,
)
from cart_qdrant.errors import UsageError  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No choice of another test is known, and no variable of the user."""
    monkeypatch.setattr(module, "_chosen", {})
    monkeypatch.delenv(module.DEVICE_VARIABLE, raising=False)
    monkeypatch.delenv(module.DTYPE_VARIABLE, raising=False)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Work]]:
    """Sets what is measured on a CPU; returns the list of what was measured."""

    def give(**found: float) -> list[Work]:
        asked: list[Work] = []

        def measured(work: Work, device: str) -> dict[str, float]:
            assert device == "cpu"
            asked.append(work)
            return found

        monkeypatch.setattr(module, "measure", measured)
        return asked

    return give


CPU = ComputeOptions(device="cpu", dtype="auto")


def test_the_quickest_format_is_taken_not_the_one_that_a_processor_lists(
    times: Callable[..., list[Work]],
) -> None:
    times(float32=100.0, bfloat16=1500.0)
    assert choose(CPU, Work.TRAINING).dtype == "float32"
    module._chosen.clear()
    times(float32=100.0, bfloat16=35.0)
    chosen = choose(CPU, Work.TRAINING)
    assert (chosen.device, chosen.dtype) == ("cpu", "bfloat16")
    assert chosen.measured == {"float32": 100.0, "bfloat16": 35.0}


def test_rounding_must_pay(times: Callable[..., list[Work]]) -> None:
    times(float32=100.0, bfloat16=95.0)
    assert choose(CPU, Work.TRAINING).dtype == "float32"


def test_each_sort_of_work_is_measured_once(times: Callable[..., list[Work]]) -> None:
    asked = times(float32=100.0, bfloat16=35.0)
    for _ in range(3):
        choose(CPU, Work.IMAGES)
        choose(CPU, Work.TRAINING)
    assert asked == [Work.IMAGES, Work.TRAINING]


def test_a_given_format_is_not_measured(times: Callable[..., list[Work]]) -> None:
    asked = times(float32=100.0)
    chosen = choose(ComputeOptions(device="cpu", dtype="bfloat16"), Work.TEXT)
    assert (chosen.dtype, chosen.format, asked) == ("bfloat16", torch.bfloat16, [])
    assert described(chosen.to_json()) == "cpu, bfloat16"


def test_the_environment_is_the_default_of_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ComputeOptions() == ComputeOptions(device="auto", dtype="auto")
    monkeypatch.setenv("CARTQ_DEVICE", "cpu")
    monkeypatch.setenv("CARTQ_DTYPE", "float32")
    assert ComputeOptions() == ComputeOptions(device="cpu", dtype="float32")
    assert ComputeOptions(dtype="bfloat16").dtype == "bfloat16"
    monkeypatch.setenv("CARTQ_DTYPE", "int8")
    with pytest.raises(UsageError, match=r"--dtype is 'int8'.*CARTQ_DTYPE"):
        ComputeOptions()


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="'gpu'"):
        ComputeOptions(device="gpu")
    with pytest.raises(UsageError, match="float16, but the device is a cpu"):
        choose(ComputeOptions(device="cpu", dtype="float16"), Work.TRAINING)
    for device, there in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
    ):
        if not there:
            with pytest.raises(UsageError, match=rf"'{device}', but torch .* finds .*cpu"):
                choose(ComputeOptions(device=device), Work.TRAINING)


def test_auto_takes_the_accelerator_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert ComputeOptions().place() == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ComputeOptions().place() == "cuda"
    assert ComputeOptions(device="cpu").place() == "cpu"


@pytest.mark.parametrize("work", list(Work))
def test_a_measurement_leaves_torch_as_it_is(work: Work) -> None:
    random, gradients = torch.get_rng_state(), torch.is_grad_enabled()
    with torch.inference_mode():  # as embedders call it
        found = measure(work, "cpu")
    assert set(found) == {"float32", "bfloat16"}
    assert all(ms > 0 for ms in found.values())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled() == gradients
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_computes_products_in_the_format() -> None:
    x = torch.ones(2, 2)
    for name, wanted in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with Compute("cpu", name).autocast():
            assert (x @ x).dtype == wanted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_is_computed_in_float32_on_a_cpu(dtype: str) -> None:
    q, k, v = (torch.linspace(-1, 1, 48).sin().mul(n).reshape(1, 2, 3, 8) for n in (3, 2, 1))
    mask = torch.tensor([True, True, False]).reshape(1, 1, 1, 3)
    wanted = torch.softmax((q @ k.mT / 8**0.5)[..., :2], dim=-1) @ v[..., :2, :]
    with Compute("cpu", dtype).autocast():
        found = attend(q, k, v, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)


def test_a_model_that_computes_nothing_here_has_no_device() -> None:
    class Model:
        compute = Compute("cpu", "bfloat16", {"float32": 2.26, "bfloat16": 1.0})

    assert compute_of(object()) is None
    found = compute_of(Model())
    assert found is not None
    assert found.to_json() == {
        "device": "cpu",
        "dtype": "bfloat16",
        "measured_ms": {"float32": 2.3, "bfloat16": 1.0},
    }
    assert described(found.to_json()) == ("cpu, bfloat16 (measured: float32 2 ms, bfloat16 1 ms)")
