"""Running out of memory is told from every other error, and leaves nothing behind."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from finetune_trainer.failures import RunFailed
from finetune_trainer.step.memory import ran_out, random_state, random_state_kept, set_random_state, weights_fit, within

CPU = torch.device("cpu")


def allocate_everything():
    torch.empty(2**62, dtype=torch.uint8)


def test_torch_says_on_a_cpu_what_is_understood_here():
    with pytest.raises(RuntimeError) as caught:
        allocate_everything()
    assert ran_out(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_running_out_of_memory(error, expected):
    assert ran_out(error) is expected


def test_numpy_says_it_in_pythons_way():
    with pytest.raises(MemoryError) as caught:
        np.empty(2**62, np.uint8)
    assert ran_out(caught.value)


def test_an_attempt_gives_its_result_or_none():
    assert within(CPU, lambda: 3) == 3
    assert within(CPU, allocate_everything) is None
    with pytest.raises(ZeroDivisionError):
        within(CPU, lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="another"):
        within(CPU, lambda: (_ for _ in ()).throw(RuntimeError("another")))


def test_a_failed_attempt_holds_nothing():
    held = []

    def attempt():
        tensor = torch.zeros(9)
        held.append(weakref.ref(tensor))
        allocate_everything()

    assert within(CPU, attempt) is None
    assert held[0]() is None


def test_where_no_row_is_to_blame_the_model_is():
    sentence = "does not fit into the memory of CPU: choose a smaller model"
    with pytest.raises(RunFailed, match=sentence) as caught, weights_fit(CPU):
        allocate_everything()
    assert caught.value.failure.exit_code == 14
    with pytest.raises(RuntimeError, match="another"), weights_fit(CPU):
        raise RuntimeError("another")


def test_random_numbers_go_on_as_if_none_had_been_drawn():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with random_state_kept(CPU):
        torch.manual_seed(2)
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)


def test_the_state_of_the_generators_can_be_put_back():
    state = random_state(CPU)
    drawn = torch.rand(3)
    set_random_state(CPU, state)
    assert torch.equal(torch.rand(3), drawn)
