from __future__ import annotations

import threading

import pytest
import torch

from plastibench.nn.halting import Halting

CPU = torch.device("cpu")


def counting(log: list[str]) -> Halting:
    def count() -> None:
        try:
            for number in range(3):
                log.append(f"before {number}")
                halting.halt(number)
        finally:
            log.append("end")

    halting = Halting(count, CPU)
    return halting


def test_a_function_runs_only_until_it_halts():
    log: list[str] = []
    halting = counting(log)
    assert log == []
    assert [halting.resume() for _ in range(5)] == [0, 1, 2, None, None]
    assert log == ["before 0", "before 1", "before 2", "end"]


def test_closing_unwinds_the_function_where_it_has_halted():
    log: list[str] = []
    halting, threads = counting(log), threading.active_count()
    halting.resume()
    halting.close()
    assert log == ["before 0", "end"]
    assert threading.active_count() == threads
    halting.close()  # again, and before the start, nothing happens
    counting(log).close()


def test_an_error_reaches_the_caller():
    halting = Halting(lambda: 1 / 0, CPU)
    with pytest.raises(ZeroDivisionError):
        halting.resume()
    halting.close()


def test_the_function_runs_without_gradients_and_with_as_many_cpu_threads_as_its_caller():
    found: list[object] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Halting(lambda: found.extend([torch.is_grad_enabled(), torch.get_num_threads()]), CPU).resume()
    finally:
        torch.set_num_threads(before)
    assert found == [False, 2] and torch.is_grad_enabled()


def test_the_function_has_the_default_device_of_its_caller():
    found: list[str] = []
    with torch.device("meta"):
        Halting(lambda: found.append(torch.empty(1).device.type), CPU).resume()
    assert found == ["meta"]
