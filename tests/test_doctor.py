"""What ``c2v doctor`` says of Triton."""

import pytest
import torch

from c2v_engine import doctor
from c2v_engine.kernels._triton import TritonStatus


def triton_findings():
    return [
        (finding.name, finding.value, finding.note)
        for finding in doctor.report()
        if finding.section == "triton"
    ]


def test_without_triton_the_reason_and_the_cure_are_told(monkeypatch):
    status = TritonStatus(False, "not there (no module), ...: pip install triton")
    monkeypatch.setattr(doctor, "triton_status", lambda: status)
    assert triton_findings() == [("kernels", "not usable", status.reason)]


@pytest.mark.parametrize(
    ("serves", "value"), [(True, "used"), (False, "not usable: compute capability below 8.0")]
)
def test_every_gpu_is_told_apart(monkeypatch, serves, value):
    monkeypatch.setattr(doctor, "triton_status", lambda: TritonStatus(True, "version 3.6.0"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(doctor, "triton_serves", lambda device: serves or device.index == 0)
    (first, second) = triton_findings()
    assert first == ("on cuda:0", "used", "version 3.6.0")
    assert second[0] == "on cuda:1"
    assert second[1].startswith(value)
